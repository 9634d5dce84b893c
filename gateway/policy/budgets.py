"""What hard budgets ask of prices: what money counts must have one. Pure.

A hard budget (dollars, refused at the end) keeps requests from targets without a price, for unknown
is not free. Where that leaves an alias nobody, every request for it would be refused for ever: such
files are not put in force. Whether a secret is set makes no difference, so that files mean the same
everywhere; what the catalog switches off does.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from gateway.domain.catalog import Alias, Catalog, Target
from gateway.domain.limit import AtLimit, Limit, Unit
from gateway.policy.catalog import SWITCHED_OFF


@dataclass(frozen=True, slots=True)
class Uncounted:
    """What a limit in dollars cannot count: `limit` is the one at `index`.

    `nobody` are aliases without any target that has a price; `targets` those without a price of
    all other aliases.
    """

    index: int
    limit: Limit
    nobody: tuple[str, ...]
    targets: tuple[Target, ...]

    @property
    def hard(self) -> bool:
        """Whether it keeps requests from what has no price."""
        return self.limit.at_limit is AtLimit.REFUSE


def uncounted(
    limits: Sequence[Limit], catalog: Catalog, priced: Container[Target]
) -> Iterator[Uncounted]:
    """Each limit in dollars that counts requests to targets which are not among the `priced`."""
    for index, limit in enumerate(limits):
        if limit.unit is not Unit.USD:
            continue
        nobody: list[str] = []
        left_out: set[Target] = set()
        for alias in counted(limit, catalog):
            there = [t for t in alias.targets if not _switched_off(t, catalog)]
            unpriced = [target for target in there if target not in priced]
            if unpriced and len(unpriced) == len(there):
                nobody.append(alias.name)
            else:
                left_out.update(unpriced)
        if nobody or left_out:
            yield Uncounted(index, limit, tuple(nobody), tuple(sorted(left_out, key=str)))


def counted(limit: Limit, catalog: Catalog) -> list[Alias]:
    """The aliases whose requests it may count."""
    only = limit.match.get("alias")
    return [alias for name, alias in catalog.aliases.items() if only is None or name in only]


def _switched_off(target: Target, catalog: Catalog) -> bool:
    return catalog.backends[target.backend].why_unconfigured == SWITCHED_OFF


def refusal(found: Uncounted, when: str = "") -> tuple[str, str]:
    """What is wrong with a hard budget that leaves aliases nobody, and how to mend it."""
    names = ", ".join(found.nobody[:3])
    more = f" and {len(found.nobody) - 3} more" if len(found.nobody) > 3 else ""
    why = "a hard budget cannot count it, so every request would be refused"
    return (
        f"no target of {names}{more} has a price{when}: {why}",
        "add rows to prices/, name other aliases in match, or say at_limit: route",
    )
