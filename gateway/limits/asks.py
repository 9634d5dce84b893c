"""Which limits count for a request, and how much of each it is to hold. Pure.

The hold is the most that the request can use as far as is known beforehand: the estimated prompt,
and for the output the caller's cap, or the limit's `hold_output_tokens` where it set none; money is
that at the worst rates of the alias's configured targets. What turns out larger is an overrun.

A key's tags do not change with the request, so the limits of a key and an alias are found once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias, Catalog, Target
from gateway.domain.limit import Limit, Unit
from gateway.domain.money import Rates
from gateway.domain.request import Endpoint, ModelRequest
from gateway.limits.gate import Ask

FOUND_MAX = 10_000
_FEMTO_PER_NANO = 1_000_000


@dataclass(frozen=True, slots=True)
class WorstRates:
    """The most a token costs at any target, in femto-USD (10^-15): what prices are exact in."""

    input: int
    output: int


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What an alias can cost and write at most. None: no target is priced, or one is unbounded."""

    rates: WorstRates | None
    output_tokens_max: int | None


@dataclass(frozen=True, slots=True)
class _Found:
    """The limits that count for one key and one alias, each with its holder."""

    tags: Mapping[str, str]
    limits: tuple[tuple[Limit, str], ...]


def worst_rates(alias: Alias, catalog: Catalog, rates: Mapping[Target, Rates]) -> WorstRates | None:
    """The highest of each rate over the alias's configured targets; None where none is priced.

    Unpriced targets are left out here: a hard budget keeps requests from them
    (`Admission.priced_only`), for unknown is not free.
    """
    priced = [
        rates[target]
        for target in alias.targets
        if target in rates and catalog.backends[target.backend].configured
    ]
    if not priced:
        return None
    return WorstRates(
        input=max(_femto(r.input, r.cached_input) for r in priced),
        output=max(_femto(r.output) for r in priced),
    )


def _femto(*usd_per_mtok: object) -> int:
    """Nine digits after the point at most, so this is exact."""
    return max(int(rate * 1_000_000_000) for rate in usd_per_mtok if rate is not None)  # type: ignore[operator]


def hold_nano_usd(rates: WorstRates, *, prompt_tokens: int, output_tokens: int) -> int:
    """The most that so many tokens cost, in nano-USD, rounded up."""
    return -(-(rates.input * prompt_tokens + rates.output * output_tokens) // _FEMTO_PER_NANO)


class LimitIndex:
    """The limits of one bundle on one day, ready to be asked."""

    def __init__(
        self, limits: tuple[Limit, ...], catalog: Catalog, rates: Mapping[Target, Rates]
    ) -> None:
        self._limits = limits
        self._bounds = {
            alias.name: _Bounds(worst_rates(alias, catalog, rates), _output_max(alias, catalog))
            for alias in catalog.aliases.values()
        }
        self._found: dict[tuple[str, str], _Found] = {}

    def asks_for(self, caller: Caller, request: ModelRequest) -> tuple[Ask, ...]:
        """What `request` has to hold; its alias is one of the catalog's."""
        if not self._limits:
            return ()
        found = self._found.get((caller.key_id, request.alias))
        if found is None or (found.tags is not caller.tags and found.tags != caller.tags):
            found = self._find(caller, request.alias)
        if not found.limits:
            return ()
        bounds = self._bounds[request.alias]
        return tuple(
            [Ask(limit, holder, _amount(limit, request, bounds)) for limit, holder in found.limits]
        )

    def _find(self, caller: Caller, alias: str) -> _Found:
        values = {**caller.tags, "key": caller.key_id, "alias": alias}
        found = _Found(
            caller.tags,
            tuple(
                (limit, values[limit.per])
                for limit in self._limits
                if limit.per in values
                and all(values.get(name) in allowed for name, allowed in limit.match.items())
            ),
        )
        if len(self._found) >= FOUND_MAX:
            self._found.clear()
        self._found[caller.key_id, alias] = found
        return found


def _output_max(alias: Alias, catalog: Catalog) -> int | None:
    """The longest answer of any configured target; None where one of them names no bound."""
    bounds = [
        catalog.backends[target.backend].models[target.model].output_tokens_max
        for target in alias.targets
        if catalog.backends[target.backend].configured
    ]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if known and len(known) == len(bounds) else None


def _amount(limit: Limit, request: ModelRequest, bounds: _Bounds) -> int:
    if limit.unit not in (Unit.TOKENS, Unit.USD):
        return 1
    output = 0
    if request.endpoint is not Endpoint.EMBEDDINGS:
        wanted = request.output_tokens_max
        output = limit.hold_output_tokens if wanted is None else wanted
        if bounds.output_tokens_max is not None:
            output = min(output, bounds.output_tokens_max)
        output *= request.choices
    if limit.unit is Unit.TOKENS:
        return request.prompt_tokens + output
    if bounds.rates is None:
        return 0
    return hold_nano_usd(bounds.rates, prompt_tokens=request.prompt_tokens, output_tokens=output)
