"""What a replay found, one entry per request: columns of plain numbers, for there may be millions.

Owns their layout and the numbers that stand for no figure. Knows nothing of how they come about.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from gateway.domain.catalog import Target

NOBODY = -1  # a choice: no answer
UNPRICED, UNMEASURED = -1, -2  # a cost: no known price; no tokens on record


@dataclass(slots=True)
class Columns:
    """One entry per request of the sample, by arrival; `choice` and `cost` have one per side.

    Targets are indices into `targets`. `size` is the class of the prompt's size, by powers of 4.
    Unknown times are NaN, unknown outputs -1. The bounds are the strictest that any side's route
    sets for the request, so that all sides are held to the same.
    """

    targets: list[Target]
    served: array[int]
    stream: array[int]
    size: array[int]
    output: array[int]
    ttft_ms: array[float]
    tpot_ms: array[float]
    tps: array[float]
    whole_ms: array[float]
    ttft_ms_max: array[float]
    tpot_ms_max: array[float]
    whole_ms_max: array[float]
    choice: tuple[array[int], ...]
    cost: tuple[array[int], ...]

    @classmethod
    def empty(cls, sides: int) -> Columns:
        """No request yet."""
        return cls(
            targets=[],
            served=array("i"),
            stream=array("b"),
            size=array("b"),
            output=array("q"),
            ttft_ms=array("d"),
            tpot_ms=array("d"),
            tps=array("d"),
            whole_ms=array("d"),
            ttft_ms_max=array("d"),
            tpot_ms_max=array("d"),
            whole_ms_max=array("d"),
            choice=tuple(array("i") for _ in range(sides)),
            cost=tuple(array("q") for _ in range(sides)),
        )

    def __len__(self) -> int:
        return len(self.served)
