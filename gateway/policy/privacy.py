"""The privacy class of a request: the strictest of what anyone says of it. Pure.

    class = max(key's floor, alias's floor, header, what detectors found)

INVARIANTS
- Nothing here lowers a class; an unknown name counts against whoever it protects: an unknown floor
  is the strictest class, an unknown ceiling permits only the lowest.
- Above the ceiling of its key a request is refused, however it came to be there, never lowered.
"""

from __future__ import annotations

from gateway.domain.caller import Caller
from gateway.domain.catalog import Catalog
from gateway.domain.errors import Forbidden, InvalidRequest
from gateway.policy.detect import NOTHING, Finding

HEADER = "x-weighbridge-privacy"


def classify(
    catalog: Catalog, caller: Caller, *, floor: int, asked: str | None, found: Finding = NOTHING
) -> int:
    """The class as a rank. `floor` is the alias's, `asked` the header's, `found` the detectors'.

    Raises InvalidRequest for a class that does not exist, Forbidden above the key's ceiling. The
    messages say what was found by the names of detectors only.
    """
    classes = catalog.privacy_classes
    rank = max(floor, found.rank)
    if caller.privacy_floor is not None:
        rank = max(rank, _rank(classes, caller.privacy_floor, unknown=len(classes) - 1))
    if asked is not None:
        if asked not in classes:
            raise InvalidRequest(
                f"Unknown privacy class {asked!r}; known are {', '.join(classes)}.", param=HEADER
            )
        rank = max(rank, classes.index(asked))
    if caller.privacy_ceiling is not None and rank > _rank(
        classes, caller.privacy_ceiling, unknown=0
    ):
        why = f" (found: {', '.join(found.names)})" if found.rank == rank and found.names else ""
        raise Forbidden(f"This key may not send {classes[rank]} data{why}.", param=HEADER)
    return rank


def _rank(classes: tuple[str, ...], name: str, *, unknown: int) -> int:
    return classes.index(name) if name in classes else unknown
