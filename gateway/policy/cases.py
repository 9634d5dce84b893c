"""`policies/routing/NAME.tests.yaml`: what a routing policy is expected to decide. Pure.

A test is the facts of a request (`given`) and what must come of them (`expect`). It runs through
the very engine that serves, over the catalog beside it, at the prices of the day it states, so
that it says the same today and in a year. A secret that is not set here changes nothing: every
backend counts as configured unless a test says which are.

Owns: the file's schema, and the comparison. `given` alone is also a file, which
`weighbridge policy explain` takes: the facts of a request that nobody sent.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from gateway.domain.catalog import Catalog, Kind, Target
from gateway.domain.decision import BackendView, Decision, Facts, Rule, Snapshot, Tails
from gateway.domain.money import Rates
from gateway.domain.request import Capability, Endpoint
from gateway.policy.engine import Router
from gateway.policy.language import Policy
from gateway.policy.source import (
    Findings,
    Path,
    Problem,
    Strict,
    dotted,
    json_schema,
    nearest,
    read,
)

NO_ELIGIBLE_BACKEND = "no_eligible_backend"
_REFUSALS = (NO_ELIGIBLE_BACKEND, *Rule)
_REST = "..."  # ends an order that may go on

RatesAt = Callable[[int], Mapping[Target, Rates]]


def _moment(text: str) -> str:
    try:
        zoned = dt.datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        zoned = False
    if not zoned:
        raise ValueError(f"'{text}' is not a moment in a zone; write it like 2026-11-23T10:00Z")
    return text


Moment = Annotated[
    str,
    AfterValidator(_moment),
    WithJsonSchema({"type": "string", "examples": ["2026-11-23T10:00Z"]}),
]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Tokens = Annotated[int, Field(ge=0, le=100_000_000)]
Ms = Annotated[float, Field(ge=0, le=86_400_000)]


class TailsFile(Strict):
    """The slow end of a window of samples, in milliseconds."""

    p90: Ms
    p95: Ms
    p99: Ms


class ViewFile(Strict):
    """What was observed of a backend; what is left out is as on an idle, unmeasured one."""

    healthy: bool = True
    circuit: Literal["closed", "open", "half_open"] = "closed"
    cooling: bool = False
    retry_after_s: float | None = Field(default=None, ge=0)
    in_flight: int = Field(default=0, ge=0)
    queue: int | None = Field(default=None, ge=0, description="Requests waiting in the engine.")
    kv_used: float | None = Field(default=None, ge=0, le=1, description="Of its KV cache.")
    ttft_ms: Ms | None = Field(default=None, description="Median time to the first token.")
    tpot_ms: Ms | None = Field(default=None, description="Median time per further token.")
    ttft_tails: TailsFile | None = None
    tpot_tails: TailsFile | None = None
    ttft_per_1k_ms: Ms = Field(default=0.0, description="More per thousand prompt tokens.")
    ttft_prompt_tokens: Tokens = Field(default=0, description="Around prompts of this length.")
    cached_share: float | None = Field(default=None, ge=0, le=1)


class GivenFile(Strict):
    """The facts of a request."""

    alias: Name
    endpoint: Endpoint = Endpoint.CHAT
    privacy: str | None = Field(
        default=None, description="The class asked for; the alias's floor may raise it."
    )
    tags: dict[str, Name] = Field(default={}, max_length=50, description="The key's.")
    key: str = Field(default="", max_length=100, description="The key's id.")
    prompt_tokens: Tokens = 1000
    output_tokens: Tokens = Field(default=300, description="Expected.")
    cached_tokens: Tokens = Field(default=0, description="Expected in the pinned target's cache.")
    needs: frozenset[Capability] = frozenset()
    stream: bool = True
    at: Moment | None = Field(default=None, description="Arrival; left out: the file's.")
    pinned: Name | None = Field(default=None, description="Where the session was, backend/model.")
    incumbent: Name | None = Field(default=None, description="Where the alias last went.")
    spent: frozenset[Name] = Field(default=frozenset(), description="Limits that are used up.")
    priced_only: bool = Field(
        default=False, description="A limit in dollars counts it, so unknown prices are out."
    )
    reverted: frozenset[Name] = Field(
        default=frozenset(), description="Routes whose canary was taken back."
    )
    bucket: int = Field(
        default=9999, ge=0, le=9999, description="Its place among the shares; 0 is in all of them."
    )
    tie_break: int = Field(default=0, ge=0, le=2**32 - 1, description="Orders equals.")
    service_tier: str | None = Field(
        default=None, max_length=40, description="Asked for: flex, priority. Left out: standard."
    )
    backends: dict[str, ViewFile] = Field(
        default={}, max_length=1000, description="What was observed of them."
    )
    configured: frozenset[Name] | None = Field(
        default=None, description="Left out: all that the catalog does not switch off."
    )


class ExpectFile(Strict):
    """What must come of it. All that is given must hold."""

    route: str | None = Field(default=None, description="The name of the route that takes it.")
    order: list[Name] | None = Field(
        default=None,
        min_length=1,
        max_length=20,
        description="All attempts in order, as backends or backend/model; '...' at the end: more.",
    )
    first: Name | None = Field(default=None, description="A backend, a backend/model or a kind.")
    never: list[Name] = Field(
        default=[], max_length=100, description="These may not serve it, not even as a fallback."
    )
    excluded: dict[Name, Rule] = Field(default={}, description="Who is out, by which rule.")
    refused: Annotated[str | None, WithJsonSchema({"enum": [str(r) for r in _REFUSALS]})] = Field(
        default=None, description="Nobody may serve it, and this rule is among the reasons."
    )
    class_: str | None = Field(default=None, alias="class", description="Its privacy class.")
    reason: str | None = Field(default=None, description="Why the first one is first.")


class CaseFile(Strict):
    """One test."""

    name: str = Field(min_length=1, max_length=200, description="What it shows, in a sentence.")
    given: GivenFile
    expect: ExpectFile


class CasesFile(Strict):
    """Tests of the routing policy that lies beside this file under the same name."""

    version: Literal[1]
    at: Moment = Field(description="When the requests arrive, and of which day the prices are.")
    tests: list[CaseFile] = Field(min_length=1, max_length=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The facts of a request as a file states them. `configured` of None: all."""

    facts: Facts
    snapshot: Snapshot
    configured: frozenset[str] | None = None

    @property
    def day(self) -> dt.date:
        """The day (UTC) whose prices count."""
        return dt.datetime.fromtimestamp(self.facts.at_us / 1e6, dt.UTC).date()

    def catalog(self, catalog: Catalog) -> Catalog:
        """`catalog` with what this request finds configured."""
        if self.configured is None:
            return catalog
        return configured(catalog, self.configured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One test, its names resolved. `path` leads to it in the file."""

    name: str
    given: Given
    expect: ExpectFile
    path: Path


@dataclass(frozen=True, slots=True)
class Suite:
    """The tests of one file. `places` knows where each stands."""

    source: str
    cases: tuple[Case, ...]
    places: Findings = field(repr=False)

    def refusals(self) -> frozenset[tuple[str, int]]:
        """Which (alias, class) a test wants refused whatever the moment: no oversight, then."""
        return frozenset(
            (case.given.facts.alias, case.given.facts.privacy)
            for case in self.cases
            if case.expect.refused is not None and not case.given.snapshot
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one test. No problems: it passed."""

    case: Case
    decision: Decision
    problems: tuple[Problem, ...]


def load_cases(
    text: str,
    *,
    source: str,
    catalog: Catalog,
    policy: Policy,
    limits: frozenset[str] = frozenset(),
) -> Suite:
    """The file as a Suite, its names resolved. Raises ConfigErrors."""
    file, findings = read(CasesFile, text, source)
    seen: set[str] = set()
    cases = []
    for index, case in enumerate(file.tests):
        path: Path = ("tests", index)
        if case.name in seen:
            findings.problem((*path, "name"), f"a second test named '{case.name}'")
        seen.add(case.name)
        given = _given(case.given, (*path, "given"), catalog, limits, file.at, findings)
        _check_expect(case.expect, (*path, "expect"), catalog, policy, findings)
        if given is not None:
            cases.append(Case(name=case.name, given=given, expect=case.expect, path=path))
    findings.raise_if_any()
    return Suite(source, tuple(cases), findings)


def load_given(
    text: str,
    *,
    source: str,
    catalog: Catalog,
    at: dt.datetime,
    limits: frozenset[str] = frozenset(),
) -> Given:
    """The file as the facts of one request, arriving `at` where it does not say. ConfigErrors."""
    file, findings = read(GivenFile, text, source)
    given = _given(file, (), catalog, limits, at.isoformat(), findings)
    findings.raise_if_any()
    assert given is not None
    return given


def run(suite: Suite, policy: Policy, catalog: Catalog, rates: RatesAt) -> Iterator[Verdict]:
    """Decide every test's request and compare. `rates` gives those in force at a moment."""
    routers: dict[tuple[frozenset[str] | None, int], Router] = {}
    for case in suite.cases:
        at_us = case.given.facts.at_us
        key = (case.given.configured, at_us)
        if key not in routers:
            there = case.given.catalog(catalog)
            routers[key] = Router.build(policy, there, rates(at_us))
        decision = routers[key].decide(case.given.facts, case.given.snapshot)
        found = _compare(case, decision, catalog)
        yield Verdict(case, decision, tuple(_problem(suite, case, *miss) for miss in found))


def configured(catalog: Catalog, names: Iterable[str]) -> Catalog:
    """`catalog` as where exactly these backends are configured."""
    there = frozenset(names)
    return replace(
        catalog,
        backends={
            name: replace(
                backend,
                configured=name in there,
                why_unconfigured=None if name in there else "not configured in this test",
            )
            for name, backend in catalog.backends.items()
        },
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of the file."""
    return json_schema(CasesFile, "Weighbridge policy tests")


# --- given ------------------------------------------------------------------------------------


def _given(
    file: GivenFile,
    path: Path,
    catalog: Catalog,
    limits: frozenset[str],
    at: str,
    findings: Findings,
) -> Given | None:
    """Notes what is wrong; None where there is no making sense of it."""
    alias = catalog.aliases.get(file.alias)
    if alias is None:
        hint = nearest(file.alias, catalog.aliases)
        findings.problem((*path, "alias"), f"no alias '{file.alias}'", hint)
    classes = catalog.privacy_classes
    if file.privacy is not None and file.privacy not in classes:
        hint = nearest(file.privacy, classes)
        findings.problem((*path, "privacy"), f"unknown privacy class '{file.privacy}'", hint)
    for name in file.backends:
        if name not in catalog.backends:
            hint = nearest(name, catalog.backends)
            findings.problem((*path, "backends", name), f"no backend '{name}'", hint, key=True)
    for name in sorted((file.configured or frozenset()) - set(catalog.backends)):
        hint = nearest(name, catalog.backends)
        findings.problem((*path, "configured"), f"no backend '{name}'", hint)
    for name in sorted(file.spent - limits):
        findings.problem((*path, "spent"), f"no limit '{name}'", nearest(name, limits))
    pinned = _target(file.pinned, (*path, "pinned"), catalog, findings)
    incumbent = _target(file.incumbent, (*path, "incumbent"), catalog, findings)
    if alias is None or (file.privacy is not None and file.privacy not in classes):
        return None
    asked = classes.index(file.privacy) if file.privacy is not None else 0
    arrival = dt.datetime.fromisoformat(file.at or at)
    facts = Facts(
        alias=alias.name,
        endpoint=file.endpoint,
        privacy=max(asked, alias.privacy_floor),
        needs=file.needs,
        prompt_tokens=file.prompt_tokens,
        output_tokens=file.output_tokens,
        stream=file.stream,
        cached_tokens=file.cached_tokens,
        key_id=file.key,
        tags=file.tags,
        at_us=int(arrival.timestamp()) * 1_000_000 + arrival.microsecond,
        spent=file.spent,
        priced_only=file.priced_only,
        reverted=file.reverted,
        pinned=pinned,
        incumbent=incumbent,
        bucket=file.bucket,
        tie_break=file.tie_break,
        service_tier=file.service_tier,
    )
    snapshot = {name: _view(view) for name, view in file.backends.items()}
    return Given(facts=facts, snapshot=snapshot, configured=file.configured)


def _view(file: ViewFile) -> BackendView:
    values = {name: getattr(file, name) for name in ViewFile.model_fields}
    for name in ("ttft_tails", "tpot_tails"):
        tails: TailsFile | None = values[name]
        values[name] = None if tails is None else Tails(tails.p90, tails.p95, tails.p99)
    return BackendView(**values)


def _target(text: str | None, path: Path, catalog: Catalog, findings: Findings) -> Target | None:
    if text is None:
        return None
    backend, _, model = text.partition("/")
    there = catalog.backends.get(backend)
    if there is None or model not in there.models:
        served = [f"{name}/{m}" for name, b in catalog.backends.items() for m in b.models]
        findings.problem(path, f"no target '{text}'", nearest(text, served))
    return Target(backend, model)


# --- expect -----------------------------------------------------------------------------------


def _check_expect(
    expect: ExpectFile, path: Path, catalog: Catalog, policy: Policy, findings: Findings
) -> None:
    if not expect.model_fields_set:
        findings.problem(path, "expects nothing", "say what must come of it, like first: vllm")
    routes = [route.name for route in policy.routes]
    if expect.route is not None and expect.route not in routes:
        hint = nearest(expect.route, routes)
        findings.problem((*path, "route"), f"no route '{expect.route}' in {policy.name}", hint)
    if expect.refused is not None and expect.refused not in _REFUSALS:
        hint = nearest(expect.refused, map(str, _REFUSALS))
        findings.problem((*path, "refused"), f"no rule '{expect.refused}'", hint)
    if expect.class_ is not None and expect.class_ not in catalog.privacy_classes:
        hint = nearest(expect.class_, catalog.privacy_classes)
        findings.problem((*path, "class"), f"unknown privacy class '{expect.class_}'", hint)
    if expect.refused is not None and (expect.order or expect.first or expect.reason):
        findings.problem((*path, "refused"), "contradicts order, first and reason", key=True)
    names = [(name, (*path, "never", index)) for index, name in enumerate(expect.never)]
    names += [(name, (*path, "excluded", name)) for name in expect.excluded]
    order = expect.order or []
    rest = order[-1:] == [_REST]
    names += [(name, (*path, "order", i)) for i, name in enumerate(order[:-1] if rest else order)]
    if expect.first is not None:
        names.append((expect.first, (*path, "first")))
    known = [*catalog.backends, *map(str, Kind)]
    served = {f"{name}/{model}" for name, b in catalog.backends.items() for model in b.models}
    for name, at in names:
        if name not in served and name not in known:
            close = nearest(name, [*known, *served])
            findings.problem(at, f"no backend, kind or backend/model '{name}'", close)


_Miss = tuple[str, str, str]  # which expectation, what it expected, what came


def _compare(case: Case, decision: Decision, catalog: Catalog) -> Iterator[_Miss]:
    """Every expectation that does not hold."""
    expect = case.expect
    order = [candidate.target for candidate in decision.order]
    eligible = [*order, *decision.cut]
    rules = {exclusion.target: exclusion.rule for exclusion in decision.excluded}
    shown = ", ".join(map(str, order)) or _nobody(decision)
    if expect.route is not None and decision.route != expect.route:
        yield "route", expect.route, decision.route or "none"
    privacy = catalog.privacy_classes[case.given.facts.privacy]
    if expect.class_ is not None and privacy != expect.class_:
        yield "class", expect.class_, privacy
    if expect.first is not None and not (order and _is(expect.first, order[0], catalog)):
        yield "first", expect.first, str(order[0]) if order else shown
    if expect.order is not None and not _in_order(expect.order, order, catalog):
        yield "order", ", ".join(expect.order), shown
    for name in expect.never:
        if found := [str(target) for target in eligible if _is(name, target, catalog)]:
            yield "never", f"{name} never", f"{', '.join(found)} may serve it"
    for name, rule in expect.excluded.items():
        of_it = {str(t): rules.get(t) for t in (*eligible, *rules) if _is(name, t, catalog)}
        if not of_it or set(of_it.values()) != {rule}:
            got = ", ".join(f"{t}: {found or 'eligible'}" for t, found in of_it.items())
            yield "excluded", f"{name}: {rule}", got or f"{name} serves no target of the alias"
    if expect.refused is not None:
        by_rule = expect.refused == NO_ELIGIBLE_BACKEND or expect.refused in rules.values()
        if order or not by_rule:
            yield "refused", f"refused, {expect.refused}", shown
    if expect.reason is not None and (not order or decision.order[0].why != expect.reason):
        yield "reason", expect.reason, decision.order[0].why if order else shown


def _is(name: str, target: Target, catalog: Catalog) -> bool:
    kind = catalog.backends[target.backend].kind
    return name in (target.backend, str(target), kind.value)


def _in_order(wanted: list[str], order: list[Target], catalog: Catalog) -> bool:
    if wanted[-1] == _REST:
        wanted = wanted[:-1]
        order = order[: len(wanted)]
    return len(wanted) == len(order) and all(
        _is(name, target, catalog) for name, target in zip(wanted, order, strict=True)
    )


def _nobody(decision: Decision) -> str:
    counts: dict[str, int] = {}
    for exclusion in decision.excluded:
        counts[exclusion.rule.value] = counts.get(exclusion.rule.value, 0) + 1
    why = ", ".join(f"{rule} {count}×" for rule, count in counts.items())
    return f"nobody may serve it ({why})" if why else "nobody may serve it"


def _problem(suite: Suite, case: Case, key: str, expected: str, got: str) -> Problem:
    path: Path = (*case.path, "expect", key)
    line, column = suite.places.position(path)
    return Problem(
        source=suite.source,
        line=line,
        column=column,
        path=dotted(path),
        message=f"test '{case.name}' expected {expected}, got {got}",
    )
