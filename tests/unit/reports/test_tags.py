"""Tags with names that a query language would trip over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.ledger.journal import _encode
from gateway.reports import definition as d
from gateway.reports.cost import cost
from gateway.reports.rows import pages
from tests.unit.ledger.records import request
from tests.unit.reports.month import NOVEMBER_US
from tests.unit.reports.test_cost import ALL, NOW

pytestmark = pytest.mark.xdist_group("reports")

NAMES = (
    *("a.b", 'q"x', '"', "ö", "o\u0308", "\u202ex", "😀", "a b", " ", "$", "$.x", "a'b", "''", "0"),
    *("x\\y", "\\", '\\"', "[0]", "*", "%", "?", ":name", "--", "/*", "{}", "#-1", "\x01"),
)


async def test_a_tag_is_found_whatever_is_in_its_name(store):
    lines = [
        _encode(request(f"r{n}", started_at_us=NOVEMBER_US + n + 1, tags={name: f"v {name}"}))[:-1]
        for n, name in enumerate(NAMES)
    ]
    await store.append(lines)
    for name in NAMES:
        of = d.name(f"tag:{name}", NAMES, "--by")
        report = await cost(store, replace(ALL, by=(of,)), now=NOW)
        found = {line[of]: line["requests"] for line in report.table.rows}
        assert found == {f"v {name}": 1, f"(no {name})": len(NAMES) - 1}
        one = replace(ALL, report="rows", where=d.filters([f"tag:{name}=v {name}"], NAMES))
        async with store.snapshot() as view:
            assert sum([len(table.rows) async for table in pages(view, one)]) == 1
