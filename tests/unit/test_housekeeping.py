"""Housekeeping goes on, whatever failed: nothing it owes is forgotten."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gateway.domain.catalog import Target
from gateway.domain.money import Rates
from gateway.housekeeping import Housekeeping
from gateway.ledger.prices import Dated, PriceBook
from gateway.runtime import ManualClock
from gateway.telemetry import Telemetry

CHANGE_S = 1_000_100
A = Rates(id="a", input=Decimal(1), output=Decimal(1))
ROWS = (
    Dated(from_us=0, until_us=CHANGE_S * 10**6, base=A),
    Dated(from_us=CHANGE_S * 10**6, until_us=None, base=A),
)


class Rig:
    """A worker's metrics below `folder`, and a reload that fails while `broken`."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.telemetry = Telemetry(directory=folder / "metrics", worker="0", gauges={})
        self.kept = self.reloads = 0
        self.broken: Exception | None = None
        self.house = Housekeeping(
            self.clock,
            prices=lambda: PriceBook({Target("b", "m"): ROWS}),
            reload=self._reload,
            saves={"metrics": self.telemetry.save, "limits": self._keep},
        )

    def _keep(self) -> None:
        self.kept += 1

    async def _reload(self) -> None:
        if self.broken is not None:
            raise self.broken
        self.reloads += 1

    async def turn(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await self.house.once()


async def test_a_disk_that_fails_once_neither_ends_it_nor_loses_the_metrics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    (tmp_path / "metrics").write_text("as ENOSPC would")
    rig.telemetry.usage_contradiction("b")
    await rig.turn(1)
    await rig.turn(1)
    assert rig.kept == 2
    assert [r.levelname for r in caplog.records] == ["ERROR"], "told once"
    (tmp_path / "metrics").unlink()
    await rig.turn(1)
    assert b"contradictions" in (tmp_path / "metrics" / "0.json").read_bytes()
    await rig.turn(CHANGE_S)
    assert rig.reloads == 1


async def test_a_change_of_prices_is_tried_until_it_was_learnt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    rig.broken = RuntimeError("no plugin")
    for _ in range(3):
        await rig.turn(60)  # over the change, and well past it
    assert len(caplog.records) == 1
    rig.broken = None
    await rig.turn(1)
    await rig.turn(1)
    assert (rig.reloads, rig.kept) == (1, 5)
