"""A replay's figures for people and for programs: sentences, tables, JSON. Pure.

Money is told for a month where the period has at least a day, else for the period as it is: what
an hour was like says too little of a month.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from gateway.cli.policy.traffic import Outcome
    from gateway.domain.catalog import Target
    from gateway.policy.comparison import Comparison, Money, Period, Spread
    from gateway.policy.replay import Tally

DAY_US_MIN = 0.9 * 86_400_000_000  # the first request of a day comes a little after midnight


class Seen(NamedTuple):
    """Requests of the sample that could not be sent to a target and can now: `open` of them, and
    those that go there."""

    alias: str
    privacy_class: str
    target: str
    open: int
    going: int

    def __str__(self) -> str:
        return (
            f"{self.open:,} {self.privacy_class} requests for {self.alias} may go to {self.target}"
            f" now; {self.going:,} do"
        )


class Privacy(NamedTuple):
    """Where privacy gets looser: by what the files say, and as the traffic shows it."""

    changes: list[str]
    seen: list[Seen]

    @classmethod
    def of(cls, changes: list[str], tally: Tally | None) -> Privacy:
        """What the traffic shows stands in its own words where the files say nothing."""
        seen = (
            []
            if tally is None
            else [
                Seen(e.alias, e.privacy_class, str(e.target), count, tally.exposed[e])
                for e, count in tally.opened.most_common()
            ]
        )
        return cls(changes or [str(one) for one in seen], seen)


# --- words --------------------------------------------------------------------------------------


def per(period: Period) -> tuple[float, str]:
    """What sums over the sample are multiplied with, and what that makes them."""
    if period.until_us - period.from_us >= DAY_US_MIN:
        return period.month, "a month"
    return period.whole, "in the period"


def dollars(nano: float, *, sign: bool = False) -> str:
    """`$1,310`, `-$0.42`, with `sign` also `+$3.00`; small amounts with two figures that count."""
    amount = abs(nano) / 1e9
    text = f"{amount:,.0f}" if amount >= 100 else f"{amount:,.2f}"
    if 0 < amount < 0.1:
        text = f"{amount:.2g}" if amount >= 1e-4 else f"{amount:.1e}"
    mark = "-" if nano < 0 else "+" if sign and nano > 0 else ""
    return f"{mark}${text}"


def share(count: int, whole: int) -> str:
    """`12.4 %`; what is there but rounds to nothing says so."""
    part = count / whole if whole else 0.0
    if 0 < part < 0.0001:
        return "<0.01 %"
    return f"{part * 100:.{2 if 0 < part < 0.001 else 1}f} %"


def change(before: float, after: float, unit: str = "") -> str:
    """`+40 ms`, `no change`, or `unknown`."""
    if isnan(before) or isnan(after):
        return "unknown"
    digits = 0 if abs(after - before) >= 10 else 1
    text = f"{after - before:+,.{digits}f}"
    return f"{text} {unit}".strip() if float(text.replace(",", "")) else "no change"


def figure(value: float, unit: str = "") -> str:
    """`412 ms`, or `unknown`."""
    return "unknown" if isnan(value) else f"{value:,.{0 if value >= 100 else 1}f} {unit}".strip()


def interval(money: Money, factor: float) -> str:
    """`-$1,310 ± 90`: the difference, and half the width of its 95 % interval."""
    half = dollars((money.high - money.low) / 2 * factor).removeprefix("$")
    return f"{dollars(money.more * factor, sign=True)} ± {half}"


def summary(comparison: Comparison, period: Period, loosened: int) -> str:
    """The one line to remember."""
    from gateway.policy.comparison import NO_ANSWER

    between = Counter(
        {
            pair: count
            for pair, count in comparison.matrix.items()
            if pair[0] != pair[1] and NO_ANSWER not in pair
        }
    ).most_common(3)
    ways = ", ".join(f"{a} → {b} {share(n, comparison.sample)}" for (a, b), n in between)
    factor, when = per(period)
    moves = f"{share(comparison.moved, comparison.sample)} of {comparison.sample:,} requests move"
    parts = [
        f"{moves} ({ways})" if ways else moves,
        f"cost {interval(comparison.money, factor)} {when} (95 %)",
        _ttft(comparison),
        f"{loosened} privacy changes" if loosened != 1 else "1 privacy change",
    ]
    for count, what in ((comparison.refused, "newly refused"), (comparison.admitted, "admitted")):
        if count:
            parts.insert(1, f"{share(count, comparison.sample)} {what}")
    return "; ".join(parts)


def _ttft(c: Comparison) -> str:
    """The change of those whose times are known; how few they are, lest it be taken for all."""
    told = f"TTFT p50 {change(c.ttft_ms.before_p50, c.ttft_ms.after_p50, 'ms')}"
    served = c.stayed + c.moved
    partly = 0 < c.ttft_ms.known < 0.95 * served
    return (
        f"{told} for the {share(c.ttft_ms.known, c.sample)} where it is known" if partly else told
    )


def remarks(outcome: Outcome, comparisons: Sequence[Comparison]) -> list[str]:
    """What must be known to believe the figures."""
    period, again = outcome.period, outcome.replay.again
    sample = period.sample
    told = [f"{again['same']:,} of {sample:,} decided again exactly as recorded"]
    if again["gone"]:
        told[0] += f"; of {again['gone']:,} the files of then are gone, today's stood in"
    if period.decided > sample + outcome.unreadable:
        told.append(
            f"a sample: one of every {period.decided / sample:.1f} requests in a row,"
            f" seed {outcome.seed}"
        )
    left_out = (
        (period.undecided, "ended before a decision"),
        (period.copies, "were copies for comparison"),
        (outcome.unreadable, "were recorded without facts, by an older version"),
    )
    told += [f"not replayed: {count:,} that {why}" for count, why in left_out if count]
    absent = {
        backend.name: None
        for side in outcome.replay.sides
        for backend in side.catalog.backends.values()
        if not backend.configured
    }
    if absent:
        told.append(f"not configured, so nothing goes there: {', '.join(absent)}")
    for comparison, side in zip(comparisons, outcome.replay.sides[1:], strict=True):
        unknown = (
            (comparison.money.unpriced, "have no known price on one side and are in no cost"),
            (comparison.money.unmeasured, "have no tokens on record and are in no cost"),
            (comparison.times_unknown, "move to where nothing like them was seen: times unknown"),
        )
        told += [f"{side.name}: {count:,} {why}" for count, why in unknown if count]
        if comparison.money.by_refusal:
            factor, when = per(period)
            part = dollars(comparison.money.by_refusal * factor, sign=True)
            told.append(f"{side.name}: {part} {when} of the difference is for want of an answer")
    return told


UNCOVERED = (
    "The interval is of the traffic. It does not cover what another model's tokeniser and verbosity"
    " would have made of it, caches there, or the queue that moved load would build up."
)


# --- tables -------------------------------------------------------------------------------------


def matrix(comparison: Comparison) -> str:
    """From where to where, by backend; the most used first."""
    cells = comparison.matrix
    sums: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for pair, count in cells.items():
        for name, total in zip(pair, sums, strict=True):
            total[name] += count
    starts, ends = sums
    names = [name for name, _ in (starts + ends).most_common()]
    columns = [name for name in names if ends[name]]
    rows = [["from ↓ to →", *columns, "all"]]
    for start in (name for name in names if starts[name]):
        counts = (cells.get((start, end), 0) for end in columns)
        rows.append([start, *(f"{n:,}" if n else "·" for n in counts), f"{starts[start]:,}"])
    rows.append(["all", *(f"{ends[end]:,}" for end in columns), f"{comparison.sample:,}"])
    return _aligned(rows)


def side_by_side(outcome: Outcome, loosened: Sequence[int]) -> str:
    """All sides beside each other; `loosened` counts each one's privacy changes."""
    period = outcome.period
    names = (
        "",
        "requests that move",
        "newly refused",
        "admitted",
        "without an answer",
        f"cost {per(period)[1]}",
        "  difference (95 %)",
        "  known on both sides",
        "TTFT p50, ms",
        "TTFT p95, ms",
        "  known on both sides",
        "TPS p50",
        "SLO misses",
        "privacy changes",
    )
    comparisons = outcome.comparisons
    # Beside a single other, the first side's times are of the same requests as the other's.
    first = comparisons[1] if len(comparisons) == 2 else comparisons[0]
    columns = [[outcome.replay.sides[0].name, *_before(first, period)]]
    others = zip(outcome.replay.sides[1:], comparisons[1:], loosened[1:], strict=True)
    columns += [[side.name, *_after(c, period, count)] for side, c, count in others]
    return _aligned(list(map(list, zip(names, *columns, strict=True))))


def _before(c: Comparison, period: Period) -> list[str]:
    return [
        "",
        "",
        "",
        f"{c.unanswered + c.admitted:,}",
        dollars(c.money.before * per(period)[0]),
        "",
        "",
        figure(c.ttft_ms.before_p50),
        figure(c.ttft_ms.before_p95),
        "",
        figure(c.tps.before_p50),
        f"{c.misses_before:,} of {c.bounded:,}" if c.bounded else "none set",
        "",
    ]


def _after(c: Comparison, period: Period, loosened: int) -> list[str]:
    def told(before: float, after: float) -> str:
        return f"{figure(after)} ({change(before, after).replace('no change', '=')})"

    m, factor = c.money, per(period)[0]
    return [
        share(c.moved, c.sample),
        f"{c.refused:,}",
        f"{c.admitted:,}",
        f"{c.unanswered + c.refused:,}",
        dollars(m.after * factor),
        interval(m, factor),
        share(c.sample - m.unpriced - m.unmeasured, c.sample),
        told(c.ttft_ms.before_p50, c.ttft_ms.after_p50),
        told(c.ttft_ms.before_p95, c.ttft_ms.after_p95),
        share(c.ttft_ms.known, c.sample),
        told(c.tps.before_p50, c.tps.after_p50),
        f"{c.misses_after:,} of {c.bounded:,}" if c.bounded else "none set",
        f"{loosened:,}",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, figures to the right; never cut, never wrapped."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    )


# --- JSON ---------------------------------------------------------------------------------------


def comparison_json(comparison: Comparison, period: Period) -> dict[str, Any]:
    """One comparison; dollars as numbers, unknown is null."""
    m = comparison.money
    names = ("before", "after", "difference", "low", "high", "by_refusal", "guess_unmeasured")
    nano = (m.before, m.after, m.more, m.low, m.high, m.by_refusal, m.guess_nano_usd)
    cost: dict[str, Any] = {
        scale: {f"{n}_usd": value * factor / 1e9 for n, value in zip(names, nano, strict=True)}
        for scale, factor in (("period", period.whole), ("month", period.month))
    }
    return {
        "requests": comparison.sample,
        "stayed": comparison.stayed,
        "moved": comparison.moved,
        "newly_refused": comparison.refused,
        "admitted": comparison.admitted,
        "unanswered": comparison.unanswered,
        "matrix": [
            {"from": start, "to": end, "requests": count}
            for (start, end), count in sorted(comparison.matrix.items())
        ],
        "moves": [
            {"from": _name(start), "to": _name(end), "requests": count}
            for (start, end), count in comparison.moves.items()
            if start != end
        ],
        "cost": cost | {"unpriced": m.unpriced, "unmeasured": m.unmeasured},
        "ttft_ms": spread_json(comparison.ttft_ms),
        "tps": spread_json(comparison.tps),
        "times_unknown": comparison.times_unknown,
        "slo": {
            "bounded": comparison.bounded,
            "misses_before": comparison.misses_before,
            "misses_after": comparison.misses_after,
        },
    }


def spread_json(spread: Spread) -> dict[str, float]:
    """Percentiles on both sides; NaN becomes null."""
    return {name: getattr(spread, name) for name in spread.__slots__}


def period_json(outcome: Outcome) -> dict[str, Any]:
    """What was replayed."""
    period = outcome.period
    return {
        "from": _iso(period.from_us),
        "until": _iso(period.until_us),
        "requests": period.decided,
        "sample": period.sample,
        "seed": outcome.seed,
        "not_decided": period.undecided,
        "copies": period.copies,
        "without_facts": outcome.unreadable,
        "decided_again": {name: outcome.replay.again[name] for name in ("same", "other", "gone")},
    }


def privacy_json(privacy: Privacy) -> dict[str, Any]:
    """Where privacy gets looser."""
    return {"changes": privacy.changes, "seen": [one._asdict() for one in privacy.seen]}


def dumps(body: Mapping[str, Any]) -> str:
    """One JSON object; NaN is null."""
    import orjson

    return orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()


def _name(target: Target | None) -> str | None:
    return None if target is None else str(target)


def _iso(us: int) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).isoformat(timespec="seconds")
