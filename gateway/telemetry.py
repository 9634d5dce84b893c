"""Metrics: every outcome tallied once, rendered when Prometheus asks.

Derives from the RequestRecord, as the ledger row does, so the two agree. Observing is a dictionary
look-up and integer additions (2.3 µs; ten updates of prometheus-client's own objects cost 16, in
its multiprocess mode 25); its exposition format is used for rendering. Several workers: each leaves
its tally in a file, and whichever is scraped adds them up, so that counters never go back when a
worker dies.

INVARIANT: labels are bounded. They come from the catalog or from closed sets; a name the caller
made up is never a label.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.domain.limit import Limit, Unit
from gateway.domain.money import NANO_PER_USD, TOKEN_METERS
from gateway.domain.outcome import RequestRecord

# name -> (help, labels)
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "weighbridge_requests": (
        "Requests by how they ended",
        ("alias", "backend", "model", "outcome", "code", "stream"),
    ),
    "weighbridge_attempts": (
        "Dispatches to a backend by how they ended; more than requests means masked failures",
        ("backend", "outcome"),
    ),
    "weighbridge_tokens": (
        "Tokens as billed; reasoning is a part of output, the others are in nothing else",
        ("backend", "model", "direction"),
    ),
    "weighbridge_metered": (
        "What is billed and is no token: searches, seconds, pictures",
        ("backend", "model", "meter"),
    ),
    "weighbridge_usage_contradictions": (
        "Attempts whose backend stated usage that does not add up; read with caution, and billed",
        ("backend",),
    ),
    "weighbridge_cost_usd": ("Cost booked, in US dollars", ("backend", "model")),
    "weighbridge_unpriced_requests": (
        "Requests with tokens but without a known price: never booked as 0",
        ("backend", "model"),
    ),
    "weighbridge_policy_load_failures": (
        "Policy versions or files that this worker could not load and did not use",
        ("what",),
    ),
    "weighbridge_canary_reverts": ("Canaries taken back, as each worker did or heard", ("route",)),
    "weighbridge_limit_alerts": (
        "What was told of limits: a share reached, used up, an overrun, a new period",
        ("limit", "event", "share"),
    ),
    "weighbridge_limit_overrun": (
        "What requests used beyond what was held for them, in the limit's unit (dollars, tokens)",
        ("limit", "unit"),
    ),
    "weighbridge_alert_deliveries": (
        "Alerts that reached a webhook (sent), or never will (dropped)",
        ("result",),
    ),
    "weighbridge_fleet_events": (
        "What happened to our own engines, as each worker saw it: straggler, stalls, crash, ...",
        ("subject", "kind"),
    ),
    "weighbridge_shadow_requests": (
        "Copies sent for comparison by how they ended; nobody is billed for them",
        ("backend", "outcome"),
    ),
}
# What happens seldom: one family each, counted by name.
_SELDOM = (
    "weighbridge_policy_load_failures",
    "weighbridge_canary_reverts",
    "weighbridge_limit_alerts",
    "weighbridge_limit_overrun",
    "weighbridge_alert_deliveries",
    "weighbridge_fleet_events",
    "weighbridge_shadow_requests",
    "weighbridge_usage_contradictions",
)
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[float, ...]]] = {
    "weighbridge_ttft_seconds": (
        "Time from the request to the first content for the client",
        ("backend", "model"),
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    ),
    "weighbridge_tpot_seconds": (
        "Time per output token after the first",
        ("backend", "model"),
        (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5),
    ),
    "weighbridge_duration_seconds": (
        "Time from the request to its last byte",
        ("backend", "model"),
        (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    ),
    "weighbridge_overhead_seconds": (
        "Our own time before the backend was asked",
        (),
        (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1),
    ),
}
SERIES_MAX = 5_000


class _Series:
    """The tallies of one combination of labels of one kind of request."""

    __slots__ = ("labels", "values")

    def __init__(self, labels: tuple[str, ...], size: int) -> None:
        self.labels = labels
        self.values = [0.0] * size


# What one (backend, model) adds up: four token counts, nano-USD, unpriced, then three histograms.
_DIRECTIONS = ("uncached_input", "cached_input", "output", "reasoning")
_COST, _UNPRICED, _HISTOGRAMS_AT = 4, 5, 6
_TIMED = ("weighbridge_ttft_seconds", "weighbridge_tpot_seconds", "weighbridge_duration_seconds")
_OVERHEAD = "weighbridge_overhead_seconds"


def _places() -> tuple[dict[str, int], int]:
    at, places = _HISTOGRAMS_AT, {}
    for name in _TIMED:
        places[name] = at
        at += len(HISTOGRAMS[name][2]) + 2  # buckets, +Inf, sum
    return places, at


_PLACE, _SIZE = _places()
_BUCKETS = {name: spec[2] for name, spec in HISTOGRAMS.items()}
_TTFT, _TPOT, _DURATION = (_PLACE[name] for name in _TIMED)
_TTFT_BUCKETS, _TPOT_BUCKETS, _DURATION_BUCKETS = (_BUCKETS[name] for name in _TIMED)
_OVERHEAD_BUCKETS = _BUCKETS[_OVERHEAD]


def _observe(values: list[float], at: int, buckets: tuple[float, ...], value: float) -> None:
    values[at + bisect_left(buckets, value)] += 1
    values[at + len(buckets) + 1] += value


class Telemetry:
    """The tally of this worker. `gauges` are read when scraped."""

    def __init__(
        self,
        *,
        directory: Path | None = None,
        worker: str = "0",
        aliases: frozenset[str] = frozenset(),
        gauges: Mapping[str, tuple[str, Callable[[], Mapping[tuple[str, ...], float]]]]
        | None = None,
    ) -> None:
        self._requests: dict[tuple[str, ...], _Series] = {}
        self._targets: dict[tuple[str, str], _Series] = {}
        self._attempts: dict[tuple[str, ...], _Series] = {}
        self._meters: dict[tuple[str, ...], _Series] = {}  # those that few requests touch
        self._overhead = [0.0] * (len(_OVERHEAD_BUCKETS) + 2)
        self._policy: list[Any] = []  # slot, name, digest and number of what is in force
        self._seldom: dict[str, dict[tuple[str, ...], _Series]] = {name: {} for name in _SELDOM}
        self._directory = directory
        self._worker = worker
        self.gauges = dict(gauges or {})
        self.aliases = aliases
        self._changed = False

    # --- hot --------------------------------------------------------------------------------

    def record(self, record: RequestRecord) -> None:
        """Tally one finished request."""
        self._changed = True
        alias = record.alias if record.alias in self.aliases else "unknown"
        backend, model = record.backend or "none", record.model or "none"
        self._count(
            self._requests,
            (
                alias,
                backend,
                model,
                record.outcome,
                record.error_code or "",
                "true" if record.stream else "false",
            ),
        )
        for attempt in record.attempts:
            self._count(self._attempts, (attempt.backend, attempt.outcome))
            if attempt.cost_nano_usd is not None:
                of = self._target(attempt.backend, attempt.model)
                of[_COST] += attempt.cost_nano_usd
        if record.overhead_us is not None:
            _observe(self._overhead, 0, _OVERHEAD_BUCKETS, record.overhead_us / 1e6)
        if record.backend is None:
            return
        values = self._target(backend, model)
        if record.output_tokens is not None:
            values[0] += record.uncached_tokens or 0
            values[1] += record.cached_tokens or 0
            values[2] += record.output_tokens
            values[3] += record.reasoning_tokens or 0
            for meter, count in (record.other_meters or {}).items():
                self._count(self._meters, (backend, model, meter), count)
            if not record.priced:
                values[_UNPRICED] += 1
        if record.ttft_us is not None:
            _observe(values, _TTFT, _TTFT_BUCKETS, record.ttft_us / 1e6)
        if record.tpot_us is not None:
            _observe(values, _TPOT, _TPOT_BUCKETS, record.tpot_us / 1e6)
        if record.duration_us is not None:
            _observe(values, _DURATION, _DURATION_BUCKETS, record.duration_us / 1e6)

    def _target(self, backend: str, model: str) -> list[float]:
        series = self._targets.get((backend, model))
        if series is None:
            series = self._targets[backend, model] = _Series((backend, model), _SIZE)
        return series.values

    @staticmethod
    def _count(
        family: dict[tuple[str, ...], _Series], labels: tuple[str, ...], count: float = 1
    ) -> None:
        series = family.get(labels)
        if series is None:
            if len(family) >= SERIES_MAX:
                labels = ("other",) * len(labels)
            series = family.setdefault(labels, _Series(labels, 1))
        series.values[0] += count

    def policy(self, number: int, name: str, digest: str) -> None:
        """This policy version is in force in this worker."""
        self._changed = True
        self._policy = [self._worker.partition("-")[0], name, digest, number]

    def policy_failed(self, what: str) -> None:
        """A version, or the files, did not load."""
        self._happened("weighbridge_policy_load_failures", what)

    def canary_reverted(self, digest: str, route: str) -> None:  # noqa: ARG002
        """The canary of a route was taken back."""
        self._happened("weighbridge_canary_reverts", route)

    def limit_alert(self, limit: str, event: str, share: str) -> None:
        """People are told something of a limit; `share` is empty where none was reached."""
        self._happened("weighbridge_limit_alerts", limit, event, share)

    def limit_overrun(self, limit: Limit, beyond: int) -> None:
        """A request used so much more of a limit than it held."""
        self._changed = True
        amount = beyond / NANO_PER_USD if limit.unit is Unit.USD else beyond
        labels = limit.name, limit.unit.value
        self._count(self._seldom["weighbridge_limit_overrun"], labels, amount)

    def alert_delivery(self, result: str) -> None:
        """An alert was `sent` to a webhook, or `dropped`."""
        self._happened("weighbridge_alert_deliveries", result)

    def fleet_event(self, subject: str, kind: str) -> None:
        """An event was told of a backend or one of its replicas."""
        self._happened("weighbridge_fleet_events", subject, kind)

    def usage_contradiction(self, backend: str) -> None:
        """What a backend stated of one attempt's usage does not add up."""
        self._happened("weighbridge_usage_contradictions", backend)

    def shadow(self, record: RequestRecord) -> None:
        """A copy has ended."""
        self._happened("weighbridge_shadow_requests", record.backend or "none", record.outcome)

    def _happened(self, name: str, *labels: str) -> None:
        self._changed = True
        self._count(self._seldom[name], labels)

    # --- cold -------------------------------------------------------------------------------

    def render(self) -> bytes:
        """The page, in Prometheus' text format, of all workers together."""
        registry = CollectorRegistry(auto_describe=False)
        dumps = self._dumps()
        registry.register(_Page(_sums(dumps), _policies(dumps), self.gauges))
        return generate_latest(registry)

    def save(self) -> None:
        """Leave the tally for the other workers, if it changed."""
        if self._directory is None or not self._changed:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / f"{self._worker}.json"
        fresh = path.with_suffix(f".{os.getpid()}.new")
        fresh.write_bytes(orjson.dumps(self._dump()))
        fresh.replace(path)
        self._changed = False  # only now: what a disk refuses is tried again

    def _dump(self) -> dict[str, list[Any]]:
        return {
            "requests": [[s.labels, s.values] for s in self._requests.values()],
            "targets": [[s.labels, s.values] for s in self._targets.values()],
            "attempts": [[s.labels, s.values] for s in self._attempts.values()],
            "meters": [[s.labels, s.values] for s in self._meters.values()],
            "overhead": [[(), self._overhead]],
            **{
                name: [[s.labels, s.values] for s in family.values()]
                for name, family in self._seldom.items()
            },
            "policy": self._policy,
        }

    def _dumps(self) -> list[dict[str, list[Any]]]:
        """Of all workers, ours last; the others' in the order in which they were left."""
        others: list[Path] = []
        if self._directory is not None:
            others = [p for p in self._directory.glob("*.json") if p.stem != self._worker]
        others.sort(key=lambda path: path.stat().st_mtime)
        return [*(orjson.loads(path.read_bytes()) for path in others), self._dump()]


def _sums(dumps: Iterable[Mapping[str, Any]]) -> dict[str, dict[tuple[str, ...], list[float]]]:
    total: dict[str, dict[tuple[str, ...], list[float]]] = {}
    for dump in dumps:
        for family, rows in dump.items():
            if family == "policy":
                continue
            sums = total.setdefault(family, {})
            for labels, values in rows:
                have = sums.setdefault(tuple(labels), [0.0] * len(values))
                for at, value in enumerate(values):
                    have[at] += value
    return total


def _policies(dumps: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], float]:
    """The version in force by worker, name and digest: of who had the same place, the last."""
    found = {dump["policy"][0]: dump["policy"] for dump in dumps if dump.get("policy")}
    return {(slot, name, digest): number for slot, name, digest, number in found.values()}


class _Page(Collector):
    """One scrape."""

    def __init__(
        self,
        tallies: dict[str, dict[tuple[str, ...], list[float]]],
        policies: Mapping[tuple[str, ...], float],
        gauges: Mapping[str, tuple[str, Callable[[], Mapping[tuple[str, ...], float]]]],
    ) -> None:
        self._tallies = tallies
        self._policies = policies
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, family in (
            ("weighbridge_requests", "requests"),
            ("weighbridge_attempts", "attempts"),
            *((name, name) for name in _SELDOM),
        ):
            yield _counter(name, ((k, v[0]) for k, v in self._tallies.get(family, {}).items()))
        targets = self._tallies.get("targets", {})
        tokens = [
            ((*labels, direction), values[at])
            for labels, values in targets.items()
            for at, direction in enumerate(_DIRECTIONS)
        ]
        meters = [(labels, values[0]) for labels, values in self._tallies.get("meters", {}).items()]
        tokens += [row for row in meters if row[0][2] in TOKEN_METERS]
        yield _counter("weighbridge_tokens", tokens)
        yield _counter("weighbridge_metered", (r for r in meters if r[0][2] not in TOKEN_METERS))
        yield _counter(
            "weighbridge_cost_usd", ((k, v[_COST] / NANO_PER_USD) for k, v in targets.items())
        )
        yield _counter(
            "weighbridge_unpriced_requests", ((k, v[_UNPRICED]) for k, v in targets.items())
        )
        for name in _TIMED:
            yield _histogram(name, targets.items(), _PLACE[name])
        yield _histogram(_OVERHEAD, self._tallies.get("overhead", {}).items(), 0)
        version = GaugeMetricFamily(
            "weighbridge_policy_version",
            "Number of the policy version in force; a worker that lags behind shows here",
            labels=("worker", "policy", "digest"),
        )
        for key, number in self._policies.items():
            version.add_metric(key, number)
        yield version
        for name, (about, read) in self._gauges.items():
            labels = ("backend",) if name == "weighbridge_in_flight" else ()
            gauge = GaugeMetricFamily(name, about, labels=labels)
            for key, value in read().items():
                gauge.add_metric(key, value)
            yield gauge


def _counter(name: str, rows: Iterable[tuple[tuple[str, ...], float]]) -> CounterMetricFamily:
    about, labels = COUNTERS[name]
    family = CounterMetricFamily(name, about, labels=labels)
    for key, value in rows:
        family.add_metric(key, value)
    return family


def _histogram(
    name: str, rows: Iterable[tuple[tuple[str, ...], list[float]]], at: int
) -> HistogramMetricFamily:
    about, labels, buckets = HISTOGRAMS[name]
    family = HistogramMetricFamily(name, about, labels=labels)
    for key, values in rows:
        running, cumulative = 0.0, []
        for offset, bound in enumerate((*(str(b) for b in buckets), "+Inf")):
            running += values[at + offset]
            cumulative.append((bound, running))
        family.add_metric(key, cumulative, values[at + len(buckets) + 1])
    return family
