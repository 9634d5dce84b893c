"""A routing file as a Policy: names resolved, expressions compiled, contradictions refused. Pure.

Owns what the values of a file mean together. First every name is looked up (catalog, limits, time
zones, CEL), then, once they are right, what they say is held against itself: a contradiction that
only follows from a misspelling is not worth telling.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from itertools import pairwise
from typing import NamedTuple, TypeVar

from gateway.domain.catalog import Catalog, Kind
from gateway.domain.money import NANO_PER_USD
from gateway.policy.expressions import Expression, ExpressionError, compile_expression
from gateway.policy.language import (
    Affinity,
    Behaviour,
    By,
    Canary,
    Hedge,
    Match,
    Metric,
    Policy,
    RetryBudget,
    Route,
    Shadow,
    Slo,
    Spill,
    Terms,
    Timeouts,
    Window,
)
from gateway.policy.routing_schema import (
    DAYS,
    BehaviourFile,
    ChoiceFile,
    MatchFile,
    PolicyFile,
    RequireFile,
    RouteFile,
    SloFile,
    WindowFile,
)
from gateway.policy.source import Findings, Path, Position, Strict, digest, nearest, read
from gateway.policy.windows import zones

DEFAULT_ROUTE = "default"
_DAY_MINUTES = 1440

StrictT = TypeVar("StrictT", bound=Strict)


def load(text: str, *, source: str, catalog: Catalog, limits: frozenset[str]) -> Policy:
    """The file as a Policy. Raises ConfigErrors."""
    file, findings = read(PolicyFile, text, source)
    names = _Names(text, catalog, limits, findings)
    expressions = [
        names.match(route.match, ("routes", index, "match"))
        for index, route in enumerate(file.routes)
    ]
    seen: set[str] = {DEFAULT_ROUTE}
    for index, route in enumerate(file.routes):
        if route.name in seen:
            findings.problem(("routes", index, "name"), f"a second route named '{route.name}'")
        seen.add(route.name)
    for path, choice in _choices(file):
        names.choice(choice, path)
    findings.raise_if_any()

    whole = _complete(file)
    policy = Policy(
        name=file.name,
        description=file.description,
        behaviour=_behaviour(file.behaviour),
        routes=(
            *(
                _route(route.name, route, _match(route.match, catalog, expression))
                for route, expression in zip(whole.routes, expressions, strict=True)
            ),
            _route(DEFAULT_ROUTE, whole.default, Match()),
        ),
        digest=digest(whole),
    )
    clashes = tuple(_clashes(policy.behaviour))
    for clash in clashes:
        findings.problem(("behaviour", *clash.path), clash.message)
    for (path, choice), made in zip(_choices(file), policy.routes, strict=True):
        if isinstance(choice, RouteFile):
            _check_match(made.match, (*path, "match"), findings)
        _check_choice(choice, made, path, catalog, findings)
        for clash in _clashes(made.behaviour):
            if clash not in clashes:  # those are told where they are written
                findings.problem((*path, "behaviour", *clash.path), clash.message)
    findings.raise_if_any()
    return policy


def _choices(file: PolicyFile) -> Iterator[tuple[Path, ChoiceFile]]:
    for index, route in enumerate(file.routes):
        yield ("routes", index), route
    yield (DEFAULT_ROUTE,), file.default


# --- names ------------------------------------------------------------------------------------


class _Names:
    """Looks up every name of a file; what there is none of becomes a finding."""

    def __init__(
        self, text: str, catalog: Catalog, limits: frozenset[str], findings: Findings
    ) -> None:
        self._rows = text.split("\n")
        self._catalog = catalog
        self._limits = limits
        self._findings = findings

    def match(self, match: MatchFile, path: Path) -> Expression | None:
        """Look at a match, and compile its expression."""
        classes = self._catalog.privacy_classes
        for index, alias in enumerate(match.aliases or ()):
            self._known("no alias", alias, self._catalog.aliases, (*path, "aliases", index))
        for index, limit in enumerate(match.spent or ()):
            self._known("no limit", limit, sorted(self._limits), (*path, "spent", index))
        for bound in ("privacy_at_least", "privacy_at_most"):
            name = getattr(match, bound)
            if name is not None:
                self._known("unknown privacy class", name, classes, (*path, bound))
        if match.window is not None:
            self._known(
                "no time zone", match.window.zone, sorted(zones()), (*path, "window", "zone")
            )
        if match.expression is None:
            return None
        return self._expression(match.expression, (*path, "expression"))

    def choice(self, choice: ChoiceFile, path: Path) -> None:
        """Look at a route's choice."""
        backends = self._catalog.backends
        known = [*Kind, *backends]
        seen: set[str] = set()
        for tier, names in enumerate(choice.prefer):
            for index, name in enumerate(names):
                at = (*path, "prefer", tier, index)
                self._known("no kind or backend", name, known, at)
                if name in seen:
                    self._findings.problem(at, f"'{name}' is in two tiers; the first counts")
                seen.add(name)
        if choice.canary is not None:
            for index, name in enumerate(choice.canary.backends):
                at = (*path, "canary", "backends", index)
                self._known("no backend", name, backends, at)
        if choice.shadow is not None:
            self._known("no backend", choice.shadow.backend, backends, (*path, "shadow", "backend"))

    def _known(self, what: str, name: str, valid: Collection[str], path: Path) -> None:
        if name not in valid:
            if path not in self._findings.value_at:  # a name that stands alone for a list
                path = path[:-1]
            self._findings.problem(path, f"{what} '{name}'", nearest(name, valid))

    def _expression(self, text: str, path: Path) -> Expression | None:
        try:
            return compile_expression(
                text,
                classes=self._catalog.privacy_classes,
                aliases=self._catalog.aliases,
                limits=self._limits,
            )
        except ExpressionError as error:
            start = self._findings.position(path)
            at = self._inside(text, start, error)
            if at is not None:
                self._findings.problem_at(at, path, error.message, error.hint)
            else:
                where = f"line {error.line}, column {error.column} of the expression"
                self._findings.problem_at(start, path, f"{error.message} ({where})", error.hint)
            return None

    def _inside(self, text: str, start: Position, error: ExpressionError) -> Position | None:
        """Where the error stands in the file, where the file has the expression as it is."""
        wanted = text.split("\n")[error.line - 1]
        line, column = start
        # A block begins on the row after its mark; what is quoted with escapes is found nowhere.
        for row, begin in ((line, column - 1), (line + error.line, 0)):
            found = self._rows[row - 1].find(wanted, begin) if row <= len(self._rows) else -1
            if wanted and found >= 0:
                return row, found + error.column
        return None


# --- to the language --------------------------------------------------------------------------


def _complete(file: PolicyFile) -> PolicyFile:
    """The file with the behaviour of every route written out."""
    routes = [_with_behaviour(route, file.behaviour) for route in file.routes]
    default = _with_behaviour(file.default, file.behaviour)
    return file.model_copy(update={"routes": routes, "default": default})


def _with_behaviour(choice: StrictT, behaviour: BehaviourFile) -> StrictT:
    assert isinstance(choice, ChoiceFile)
    return choice.model_copy(update={"behaviour": _over(behaviour, choice.behaviour)})


def _over(base: StrictT, given: StrictT) -> StrictT:
    """`base` with what is written in `given`, key by key."""
    update: dict[str, object] = {}
    for name in given.model_fields_set:
        below, value = getattr(base, name), getattr(given, name)
        both = isinstance(below, Strict) and isinstance(value, Strict)
        update[name] = _over(below, value) if both else value
    return base.model_copy(update=update)


def _behaviour(file: BehaviourFile) -> Behaviour:
    return Behaviour(
        attempts_max=file.attempts_max,
        backends_max=file.backends_max,
        affinity=None if file.affinity is None else Affinity(**file.affinity.model_dump()),
        retries=RetryBudget(**file.retries.model_dump()),
        timeouts=Timeouts(**file.timeouts.model_dump()),
        hedge=None if file.hedge is None else Hedge(**file.hedge.model_dump()),
        spill=None if file.spill is None else Spill(**file.spill.model_dump()),
    )


def _match(file: MatchFile, catalog: Catalog, expression: Expression | None) -> Match:
    def rank(name: str | None) -> int | None:
        return None if name is None else catalog.privacy_classes.index(name)

    return Match(
        aliases=_set(file.aliases),
        keys=_set(file.keys),
        tags={tag: frozenset(values) for tag, values in file.tags.items()},
        endpoint=file.endpoint,
        privacy_at_least=rank(file.privacy_at_least),
        privacy_at_most=rank(file.privacy_at_most),
        stream=file.stream,
        needs=file.needs,
        prompt_tokens_min=file.prompt_tokens_min,
        prompt_tokens_max=file.prompt_tokens_max,
        window=None if file.window is None else _window(file.window),
        spent=frozenset(file.spent or ()),
        expression=expression,
    )


def _window(file: WindowFile) -> Window:
    days: set[int] = set()
    for text in file.days:
        first, _, last = text.partition("-")
        start, end = DAYS.index(first), DAYS.index(last or first)
        days.update((start + ahead) % 7 for ahead in range((end - start) % 7 + 1))
    return Window(
        zone=file.zone,
        days=frozenset(days),
        start_minute=_minute(file.from_),
        end_minute=_minute(file.to),
    )


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)


def _route(name: str, file: ChoiceFile, match: Match) -> Route:
    price, canary, shadow = file.price_max_usd, file.canary, file.shadow
    return Route(
        name=name,
        match=match,
        prefer=tuple(map(frozenset, file.prefer)),
        by=file.by,
        cost_weight=file.mix.cost_weight,
        hysteresis=file.mix.hysteresis,
        explore=file.explore,
        own_cost=file.own_cost,
        only=file.only,
        require=_terms(file.require),
        price_max_nano_usd=None if price is None else int(Decimal(price) * NANO_PER_USD),
        slos=tuple(_slos(file.slo)),
        priority=file.priority,
        canary=None
        if canary is None
        else Canary(**{**canary.model_dump(), "backends": frozenset(canary.backends)}),
        shadow=None if shadow is None else Shadow(backend=shadow.backend, share=shadow.share),
        behaviour=_behaviour(file.behaviour),
    )


def _terms(file: RequireFile) -> Terms:
    return Terms(
        regions=_set(file.regions),
        retention_days_max=file.retention_days_max,
        no_training=file.no_training,
        certifications=frozenset(file.certifications),
        subprocessors_allowed=_set(file.subprocessors_allowed),
        licences=_set(file.licences),
    )


def _slos(file: SloFile) -> Iterator[Slo]:
    """In a fixed order, whatever the file's: metric, then percentile."""
    for metric in Metric:
        bounds = getattr(file, metric.value)
        for percentile in (50, 90, 95, 99):
            ms = None if bounds is None else getattr(bounds, f"p{percentile}")
            if ms is not None:
                yield Slo(metric=metric, percentile=percentile, ms_max=float(ms))


def _set(names: Sequence[str] | None) -> frozenset[str] | None:
    return None if names is None else frozenset(names)


# --- contradictions ---------------------------------------------------------------------------


class _Clash(NamedTuple):
    """Where in a behaviour, and what."""

    path: Path
    message: str


def _check_match(match: Match, path: Path, findings: Findings) -> None:
    if match == Match():
        findings.problem(path, "matches every request, so no later route is reached", "use default")
    least, most = match.privacy_at_least, match.privacy_at_most
    if least is not None and most is not None and least > most:
        findings.problem((*path, "privacy_at_most"), "is below privacy_at_least: nothing matches")
    low, high = match.prompt_tokens_min, match.prompt_tokens_max
    if low is not None and high is not None and low > high:
        findings.problem((*path, "prompt_tokens_max"), "is below prompt_tokens_min")
    window = match.window
    if window is not None and len(window.days) == len(DAYS):
        length = (window.end_minute - window.start_minute) % _DAY_MINUTES
        if length == 0:
            findings.problem((*path, "window"), "is always open", "leave it out", key=True)


def _check_choice(
    file: ChoiceFile, route: Route, path: Path, catalog: Catalog, findings: Findings
) -> None:
    if route.only and not route.prefer:
        findings.problem((*path, "only"), "without prefer nothing is left", key=True)
    if "mix" in file.model_fields_set and route.by is not By.MIX:
        findings.problem((*path, "mix"), f"has no meaning by {route.by}", "say by: mix", key=True)
    if route.explore and route.by is By.ORDER:
        findings.problem(
            (*path, "explore"), "has no meaning by order", "nothing measured changes it", key=True
        )
    for metric in Metric:
        bounds = [slo for slo in route.slos if slo.metric is metric]
        for looser, tighter in pairwise(bounds):
            if tighter.ms_max < looser.ms_max:
                findings.problem(
                    (*path, "slo", metric.value, f"p{tighter.percentile}"),
                    f"is below p{looser.percentile}, which then says nothing",
                )
    if route.canary is not None and file.canary is not None:
        for index, name in enumerate(file.canary.backends):
            at = (*path, "canary", "backends", index)
            _check_served(name, route, at, catalog, findings)
            kind = catalog.backends[name].kind.value
            if route.only and not any(tier & {name, kind} for tier in route.prefer):
                findings.problem(at, f"'{name}' is in no tier, and only those are used")
    if route.shadow is not None:
        at = (*path, "shadow", "backend")
        _check_served(route.shadow.backend, route, at, catalog, findings)


def _check_served(
    backend: str, route: Route, path: Path, catalog: Catalog, findings: Findings
) -> None:
    """A backend that a route sends to must serve one of its aliases."""
    aliases = catalog.aliases if route.match.aliases is None else route.match.aliases
    serving = {target.backend for name in aliases for target in catalog.aliases[name].targets}
    if backend not in serving:
        message = f"no alias of this route has a target at '{backend}'"
        findings.problem(path, message, nearest(backend, sorted(serving)))


def _clashes(behaviour: Behaviour) -> Iterator[_Clash]:
    if behaviour.hedge is not None:
        for bound in ("attempts_max", "backends_max"):
            if getattr(behaviour, bound) < 2:
                yield _Clash(("hedge",), f"needs a second backend, and {bound} is 1")
    timeouts = behaviour.timeouts
    for name in ("connect_ms", "first_token_ms", "idle_ms"):
        part = getattr(timeouts, name)
        if part is not None and timeouts.total_ms is not None and part > timeouts.total_ms:
            yield _Clash(("timeouts", name), "is over total_ms")
    if behaviour.spill == Spill():
        yield _Clash(("spill",), "has no threshold")
