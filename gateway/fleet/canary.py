"""How a canary does beside the other requests of its route, and when it is taken back.

A canary is judged on what lately ended: its numbers and those of the others are halved together
whenever it has twice `samples_min`, so a good week does not outweigh a bad hour. From `samples_min`
on it is taken back when

- its share of failures is above `error_share_max`, and above that of the others: what strikes both
  alike (our own network, say) is not the canary's doing;
- or its mean cost is above `cost_ratio_max` times that of the others, both over `samples_min`
  priced requests.

Taken back means: for this digest of the policy, for good, in every worker that hears of it
(`fleet.shared`). A worker judges by its own requests. Callers count a canary request as failed when
a canary backend was asked and failed, also where another backend then answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.policy.language import Canary

log = logging.getLogger("weighbridge")


@dataclass(slots=True)
class _Tally:
    """Requests of one kind that ended, how many failed, and the cost of those with a price."""

    ended: float = 0
    failed: float = 0
    priced: float = 0
    nano_usd: float = 0

    def add(self, failed: bool, cost_nano_usd: int | None) -> None:
        self.ended += 1
        self.failed += failed
        if cost_nano_usd is not None:
            self.priced += 1
            self.nano_usd += cost_nano_usd

    def halve(self) -> None:
        self.ended /= 2
        self.failed /= 2
        self.priced /= 2
        self.nano_usd /= 2

    @property
    def failed_share(self) -> float:
        return self.failed / self.ended if self.ended else 0.0

    @property
    def mean_nano_usd(self) -> float:
        return self.nano_usd / self.priced if self.priced else 0.0


@dataclass(slots=True)
class _Trial:
    canary: _Tally = field(default_factory=_Tally)
    others: _Tally = field(default_factory=_Tally)


def _nobody(*_: str) -> None:
    """Until somebody wants to know."""


class Canaries:
    """All canaries of the policy in force.

    `on_reverted(digest, route)` is called once for each of the policy in force that this worker
    takes back or hears of, `on_told(digest, route)` when other workers should know.
    """

    def __init__(self, on_reverted: Callable[[str, str], None] = _nobody) -> None:
        self._on_reverted = on_reverted
        self.on_told: Callable[[str, str], None] = _nobody
        self._digest = ""
        self._rules: Mapping[str, Canary] = {}
        self._trials: dict[str, _Trial] = {}
        self._gone: set[tuple[str, str]] = set()
        self._reverted: frozenset[str] = frozenset()

    def adopt(self, digest: str, rules: Mapping[str, Canary]) -> None:
        """`rules` of the routes of the policy of this digest are in force from now on."""
        if digest != self._digest:
            self._trials = {}
        self._digest, self._rules = digest, rules
        self._note()
        for route in sorted(self._reverted):
            log.warning("canary of route '%s' stays taken back (policy %s)", route, digest)

    def reverted(self) -> frozenset[str]:
        """Routes of the policy in force whose canary was taken back."""
        return self._reverted

    @property
    def gone(self) -> frozenset[tuple[str, str]]:
        """Every (digest, route) known to be taken back."""
        return frozenset(self._gone)

    def ended(
        self, route: str, digest: str, *, canary: bool, failed: bool, cost_nano_usd: int | None
    ) -> None:
        """A request of `route` ended, decided by the policy of `digest`."""
        rule = self._rules.get(route)
        if rule is None or digest != self._digest or route in self._reverted:
            return
        trial = self._trials.setdefault(route, _Trial())
        (trial.canary if canary else trial.others).add(failed, cost_nano_usd)
        why = _why(rule, trial) if canary else None
        if why is not None:
            log.error("canary of route '%s' taken back (policy %s): %s", route, digest, why)
            self._take_back(digest, route)
            self.on_told(digest, route)
        elif trial.canary.ended >= 2 * rule.samples_min:
            trial.canary.halve()
            trial.others.halve()

    def heard(self, digest: str, route: str) -> None:
        """Another worker has taken it back."""
        if (digest, route) in self._gone:
            return
        if digest == self._digest:
            log.error("canary of route '%s' taken back by another worker (%s)", route, digest)
        self._take_back(digest, route)

    def _take_back(self, digest: str, route: str) -> None:
        self._gone.add((digest, route))
        self._note()
        if digest == self._digest:
            self._on_reverted(digest, route)

    def _note(self) -> None:
        self._reverted = frozenset(route for digest, route in self._gone if digest == self._digest)


def _why(rule: Canary, trial: _Trial) -> str | None:
    """Why it must be taken back; None as long as it may stay."""
    canary, others = trial.canary, trial.others
    if canary.ended < rule.samples_min:
        return None
    share, usual = canary.failed_share, others.failed_share
    if share > rule.error_share_max and (share > usual or not others.ended):
        return f"{share:.1%} failed, {usual:.1%} of the others, {rule.error_share_max:.1%} allowed"
    if rule.cost_ratio_max is None or min(canary.priced, others.priced) < rule.samples_min:
        return None
    mean, limit = canary.mean_nano_usd, rule.cost_ratio_max * others.mean_nano_usd
    if mean > limit:
        return f"costs {mean / 1e9:.6f} USD a request, {limit / 1e9:.6f} allowed"
    return None
