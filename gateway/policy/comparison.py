"""Two sides of a replay beside each other: what moves, what it costs, how fast it is. Pure.

Owns the statistics; `replay` made the choices. Figures are of the sample; a `Period` scales them.

COST. Only requests whose cost is known on both sides count; how many are not is said. The interval
is a block bootstrap: the requests, in the order they came, are cut into 200 runs of equal length
(fewer requests: one each), the runs are drawn with replacement 2,000 times, and the middle 95 % of
the sums is the interval. Runs and not single requests, because neighbours share conversations,
callers and the time of day, and drawing them one by one would pretend to know more than we do. It
covers what another period of the same traffic could have held, and the draw of the sample, and
nothing of what `replay` lists under what it cannot know.

TIMES. A request that a side leaves where it was keeps its own; a moved one borrows those of a
request that the target served in the period, streamed alike and with a prompt of about the same
size, drawn by the seed. Drawn and not averaged, so that percentiles keep their spread. Percentiles
are over the requests whose time is known on both sides, so both are of the same requests.

INVARIANTS: the same columns and seed give the same figures; a side beside itself moves nothing and
costs nothing more; stayed + moved + refusals and admissions is the sample, and so is the matrix;
the interval contains the difference.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, isnan, nan
from typing import NamedTuple

from gateway.domain.catalog import Target
from gateway.policy.chance import below, mixed, numbers
from gateway.policy.columns import NOBODY, UNMEASURED, UNPRICED, Columns
from gateway.policy.replay import Replay

NO_ANSWER = "no answer"
BLOCKS, DRAWS = 200, 2_000
MONTH_US = 2_629_800_000_000  # a twelfth of 365.25 days


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What the sample stands for. `decided` requests came in it; `undecided` ended before a
    decision (a wrong key, a limit, a bad body) and `copies` were shadows: neither is replayed."""

    from_us: int
    until_us: int
    decided: int
    sample: int
    undecided: int = 0
    copies: int = 0

    @property
    def whole(self) -> float:
        """Times the sample: the whole period."""
        return self.decided / self.sample if self.sample else 0.0

    @property
    def month(self) -> float:
        """Times the sample: a month of such traffic."""
        return self.whole * MONTH_US / max(1, self.until_us - self.from_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """Cost on both sides in nano-USD over the sample. `low` and `high` bound `more` at 95 %.

    `by_refusal` is the part of `more` that comes from requests one side does not answer. Of the
    requests left out, `guess_nano_usd` is what those without tokens on record were predicted to
    cost more.
    """

    before: int
    after: int
    low: int
    high: int
    by_refusal: int
    unpriced: int
    unmeasured: int
    guess_nano_usd: int

    @property
    def more(self) -> int:
        """What the second side costs more; less is negative."""
        return self.after - self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure on both sides at two percentiles, over `known` requests; NaN of none."""

    before_p50: float
    after_p50: float
    before_p95: float
    after_p95: float
    known: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One side against another over the sample. `moves` counts every request by (from, to).

    `refused` had an answer before and have none after, `admitted` the reverse, `unanswered` none
    on either side. `misses_*` are requests that exceed a service level, of `bounded` that have one
    and whose times are known on both sides. `times_unknown` moved to where nothing like them was
    served in the period.
    """

    sample: int
    stayed: int
    moved: int
    refused: int
    admitted: int
    unanswered: int
    moves: Mapping[tuple[Target | None, Target | None], int]
    money: Money
    ttft_ms: Spread
    tps: Spread
    bounded: int
    misses_before: int
    misses_after: int
    times_unknown: int

    @property
    def matrix(self) -> dict[tuple[str, str], int]:
        """`moves` by backend; its values add up to the sample."""
        cells: Counter[tuple[str, str]] = Counter()
        for (start, end), count in self.moves.items():
            cells[_backend(start), _backend(end)] += count
        return dict(cells)


class Times(NamedTuple):
    """What each request takes on one side, NaN where that is not known."""

    ttft_ms: array[float]
    tpot_ms: array[float]
    tps: array[float]
    whole_ms: array[float]


class Lenders:
    """The requests whose times others may borrow: by who served them, streaming and size."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._of: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for index, served in enumerate(columns.served):
            if served != NOBODY and not isnan(columns.tps[index]):
                self._of[served, columns.stream[index], columns.size[index]].append(index)

    def times(self, side: int, seed: int) -> Times:
        """The times of all requests on a side. The same seed borrows from the same lenders."""
        c = self._columns
        times = Times(array("d"), array("d"), array("d"), array("d"))
        for index, choice in enumerate(c.choice[side]):
            if choice == NOBODY:
                own = (nan, nan, nan, nan)
            elif choice == c.served[index]:
                own = (c.ttft_ms[index], c.tpot_ms[index], c.tps[index], c.whole_ms[index])
            else:
                own = self._borrowed(index, choice, seed)
            for column, value in zip(times, own, strict=True):
                column.append(value)
        return times

    def _borrowed(self, index: int, choice: int, seed: int) -> tuple[float, float, float, float]:
        c = self._columns
        lenders = self._of.get((choice, c.stream[index], c.size[index]))
        if not lenders:
            return nan, nan, nan, nan
        lender = lenders[below(len(lenders), mixed(seed ^ mixed(index)))]
        ttft, tpot, tps = c.ttft_ms[lender], c.tpot_ms[lender], c.tps[lender]
        output = c.output[index]
        if output < 0:
            whole = nan
        elif not isnan(ttft) and (output < 2 or not isnan(tpot)):
            whole = ttft + (tpot * (output - 1) if output > 1 else 0.0)
        else:
            whole = output * 1000 / tps
        return ttft, tpot, tps, whole


def compare(replay: Replay, *, seed: int, before: int = 0) -> list[Comparison]:
    """Every side against the side `before`, in the order of the sides (itself included)."""
    lenders = Lenders(replay.columns)
    first = lenders.times(before, seed)
    found = []
    for after in range(len(replay.sides)):
        second = first if after == before else lenders.times(after, seed)
        found.append(_compare(replay, before, after, first, second, seed))
    return found


def _compare(
    replay: Replay, before: int, after: int, first: Times, second: Times, seed: int
) -> Comparison:
    c = replay.columns
    starts, ends = c.choice[before], c.choice[after]
    counts = Counter(zip(starts, ends, strict=True))
    sample = len(c)
    stayed = sum(n for (start, end), n in counts.items() if start == end != NOBODY)
    refused = sum(n for (start, end), n in counts.items() if start != NOBODY == end)
    admitted = sum(n for (start, end), n in counts.items() if start == NOBODY != end)
    unanswered = counts[NOBODY, NOBODY]
    bounded, misses_before, misses_after = _misses(c, first, second)
    return Comparison(
        sample=sample,
        stayed=stayed,
        moved=sample - stayed - refused - admitted - unanswered,
        refused=refused,
        admitted=admitted,
        unanswered=unanswered,
        moves=dict(
            sorted(
                (((_at(c, start), _at(c, end)), n) for (start, end), n in counts.items()),
                key=lambda move: (-move[1], str(move[0])),
            )
        ),
        money=_money(replay, before, after, seed),
        ttft_ms=_spread(first.ttft_ms, second.ttft_ms),
        tps=_spread(first.tps, second.tps),
        bounded=bounded,
        misses_before=misses_before,
        misses_after=misses_after,
        times_unknown=sum(
            1
            for start, end, tps in zip(starts, ends, second.tps, strict=True)
            if start != end != NOBODY and isnan(tps)
        ),
    )


# --- money --------------------------------------------------------------------------------------


def _money(replay: Replay, before: int, after: int, seed: int) -> Money:
    c = replay.columns
    sample = len(c)
    blocks = [0] * min(BLOCKS, sample)
    sums = [0, 0]
    by_refusal = unpriced = unmeasured = 0
    for index, (old, new) in enumerate(zip(c.cost[before], c.cost[after], strict=True)):
        if old >= 0 and new >= 0:
            sums[0] += old
            sums[1] += new
            blocks[index * len(blocks) // sample] += new - old
            if (c.choice[before][index] == NOBODY) != (c.choice[after][index] == NOBODY):
                by_refusal += new - old
        elif UNMEASURED in (old, new):
            unmeasured += 1
        elif UNPRICED in (old, new):
            unpriced += 1
    low, high = interval(blocks, seed)
    guesses = [tally.guessed_nano_usd for tally in replay.tallies]
    return Money(
        before=sums[0],
        after=sums[1],
        low=low,
        high=high,
        by_refusal=by_refusal,
        unpriced=unpriced,
        unmeasured=unmeasured,
        guess_nano_usd=guesses[after] - guesses[before],
    )


def interval(blocks: Sequence[int], seed: int, *, draws: int = DRAWS) -> tuple[int, int]:
    """The middle 95 % of the sums of `blocks` drawn with replacement; their own sum is inside."""
    total = sum(blocks)
    if not any(blocks):
        return 0, 0
    sums = sorted(
        sum([blocks[index] for index in draw]) for draw in _draws(len(blocks), draws, seed)
    )
    edge = draws // 40
    return min(total, sums[edge]), max(total, sums[-1 - edge])


@lru_cache(maxsize=1)  # every comparison of a replay draws the same runs
def _draws(count: int, draws: int, seed: int) -> tuple[array[int], ...]:
    chance = numbers(seed)
    return tuple(
        array("H", [below(count, next(chance)) for _ in range(count)]) for _ in range(draws)
    )


# --- times --------------------------------------------------------------------------------------


def _spread(before: array[float], after: array[float]) -> Spread:
    pairs = [
        (old, new)
        for old, new in zip(before, after, strict=True)
        if not isnan(old) and not isnan(new)
    ]
    olds, news = sorted(old for old, _ in pairs), sorted(new for _, new in pairs)
    return Spread(
        before_p50=percentile(olds, 50),
        after_p50=percentile(news, 50),
        before_p95=percentile(olds, 95),
        after_p95=percentile(news, 95),
        known=len(pairs),
    )


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The nearest rank: a value that occurred. NaN of nothing."""
    if not ascending:
        return nan
    return ascending[max(0, ceil(len(ascending) * percent / 100) - 1)]


def _misses(c: Columns, first: Times, second: Times) -> tuple[int, int, int]:
    bounded = before = after = 0
    for index, bounds in enumerate(zip(c.ttft_ms_max, c.tpot_ms_max, c.whole_ms_max, strict=True)):
        olds = (first.ttft_ms[index], first.tpot_ms[index], first.whole_ms[index])
        news = (second.ttft_ms[index], second.tpot_ms[index], second.whole_ms[index])
        known = [
            (old > bound, new > bound)
            for old, new, bound in zip(olds, news, bounds, strict=True)
            if bound < float("inf") and not isnan(old) and not isnan(new)
        ]
        if known:
            bounded += 1
            before += any(old for old, _ in known)
            after += any(new for _, new in known)
    return bounded, before, after


# --- small things -------------------------------------------------------------------------------


def _at(columns: Columns, number: int) -> Target | None:
    return None if number == NOBODY else columns.targets[number]


def _backend(target: Target | None) -> str:
    return NO_ANSWER if target is None else target.backend
