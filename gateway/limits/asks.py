"""Which limits count for a request, and how much of each it is to hold. Pure.

The hold is the most that the request can use as far as is known beforehand: the estimated prompt,
and for the output the caller's cap, or the limit's `hold_output_tokens` where it set none. What
turns out larger is an overrun.

Money is that at the worst rates of the alias's configured targets (`policy.worst`).

A key's tags do not change with the request, so the limits of a key and an alias are found once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.domain.caller import Caller
from gateway.domain.catalog import Alias, Catalog, Target
from gateway.domain.limit import Limit, Unit
from gateway.domain.money import Rates
from gateway.domain.request import Capability, Endpoint, ModelRequest
from gateway.limits.gate import Ask
from gateway.policy.worst import WorstRates, hold_nano_usd, worst

FOUND_MAX = 10_000

_Asked = tuple[str | None, bool]  # a service tier, and whether there are sounds


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What an alias can cost and write at most. No rates: no target is priced. `output_tokens_max`
    of None: one target is unbounded. `usual` are the rates of most requests."""

    usual: WorstRates | None
    rates: Mapping[_Asked, WorstRates | None]
    output_tokens_max: int | None

    def worst(self, request: ModelRequest) -> WorstRates | None:
        sounds = Capability.AUDIO in request.needs
        if request.service_tier is None and not sounds:
            return self.usual
        # A service tier that nobody has a price of is served at the standard one, or not at all.
        return self.rates.get((request.service_tier, sounds)) or self.rates[None, sounds]


@dataclass(frozen=True, slots=True)
class _Found:
    """The limits that count for one key and one alias, each with its holder."""

    tags: Mapping[str, str]
    limits: tuple[tuple[Limit, str], ...]


class LimitIndex:
    """The limits of one bundle while the same prices hold, ready to be asked.

    `soon` are the rates of a moment ahead: near a change the dearer of both are held, so that a
    worker which learns of it late has not held too little.
    """

    def __init__(
        self,
        limits: tuple[Limit, ...],
        catalog: Catalog,
        rates: Mapping[Target, Rates],
        soon: Mapping[Target, Rates] | None = None,
    ) -> None:
        self.limits = limits
        tables = (rates,) if soon is None or soon == rates else (rates, soon)
        self._bounds = {a.name: _bounds(a, catalog, tables) for a in catalog.aliases.values()}
        self._found: dict[tuple[str, str], _Found] = {}

    def asks_for(self, caller: Caller, request: ModelRequest) -> tuple[Ask, ...]:
        """What `request` has to hold; its alias is one of the catalog's."""
        if not self.limits:
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
                for limit in self.limits
                if limit.per in values
                and all(values.get(name) in allowed for name, allowed in limit.match.items())
            ),
        )
        if len(self._found) >= FOUND_MAX:
            self._found.clear()
        self._found[caller.key_id, alias] = found
        return found


def _bounds(alias: Alias, catalog: Catalog, tables: tuple[Mapping[Target, Rates], ...]) -> _Bounds:
    """Unpriced targets are left out: a hard budget keeps requests from them
    (`Admission.priced_only`), for unknown is not free."""
    priced = [
        rates[target]
        for rates in tables
        for target in alias.targets
        if target in rates and catalog.backends[target.backend].configured
    ]
    tiers: list[str | None] = [None, *{tier for held in priced for tier in held.service_tiers}]
    found = {
        (tier, sounds): worst(priced, service_tier=tier, sounds=sounds)
        for tier in tiers
        for sounds in (False, True)
    }
    return _Bounds(found[None, False], found, _output_max(alias, catalog))


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
    rates = bounds.worst(request)
    if rates is None:
        return 0
    return hold_nano_usd(rates, prompt_tokens=request.prompt_tokens, output_tokens=output)
