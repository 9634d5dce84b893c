"""I-14: the wall clock steps while requests run; what lasts is measured by the other clock."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.errors import UpstreamBroken
from gateway.ledger.laws import Case, broken
from gateway.runtime import ManualClock
from tests.promises import promise
from tests.unit.spine import FINE, Script, begin, build, finish

DAY = 86_400.0
STEPS = st.lists(
    st.sampled_from([0.0, -3600.0, 3600.0]) | st.floats(-30 * DAY, 30 * DAY), min_size=1
)


class Stepping(ManualClock):
    """Each look at the wall finds it moved; what is measured is not."""

    def __init__(self, steps: list[float]) -> None:
        super().__init__(1_794_000_000.0)
        self._steps = steps
        self._looks = 0

    def wall(self) -> float:
        self._looks += 1
        return self.now + self._steps[self._looks % len(self._steps)]


def times(steps: list[float]) -> tuple[object, ...]:
    """What one request with a failure and an answer left of times, after the laws have seen it."""

    async def run() -> dict:
        scripts = {"a": Script(before=UpstreamBroken("no")), "b": FINE}
        dispatch, wire, kept = build(scripts, clock=Stepping(steps))
        _, answer = await begin(dispatch)
        wire.clock.advance(2.0)
        await finish(answer)
        return asdict(kept.closed[0])

    row = asyncio.run(run())
    assert broken(Case(row=row, attempts=row["attempts"])) == []
    lasted = [row[name] for name in ("duration_us", "ttft_us", "overhead_us")]
    lasted += [attempt["duration_us"] for attempt in row["attempts"]]
    since = [attempt["started_at_us"] - row["started_at_us"] for attempt in row["attempts"]]
    return (*lasted, row["tps"], *since)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_no_step_of_the_clock_shows_in_what_lasted(steps):
    assert times(steps) == times([0.0])


def test_the_promise():
    wild = [[s * DAY for s in (0, -30, 30, 1, -1)[: n % 5 + 1]] for n in range(25)]
    assert len({times(steps) for steps in wild}) == 1
    promise("I-14", f"0 laws broken in {len(wild)} runs, steps of up to 30 days")
