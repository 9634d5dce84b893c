"""Each format of a report, read back by something that is not what wrote it."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections import Counter
from dataclasses import replace
from decimal import Decimal

import orjson
import pytest

from gateway.ledger import ratings
from gateway.ledger.store import Store
from gateway.reports.cost import cost
from gateway.reports.document import Chart, Series, money, shown
from gateway.reports.formats import drawing
from gateway.reports.formats.as_html import as_html
from gateway.reports.formats.as_pdf import as_pdf
from gateway.reports.formats.as_text import as_csv, as_json
from gateway.reports.formats.as_xlsx import as_xlsx
from tests.unit.ledger.records import attempt, request
from tests.unit.reports.month import LATER, MONTH_US, NOVEMBER_US, month, stated
from tests.unit.reports.spreadsheet import read
from tests.unit.reports.test_cost import ALL, NOW

EVIL = "<script>alert(1)</script>"


@pytest.fixture
async def store(tmp_path):
    made = await Store.connect(f"sqlite:///{tmp_path / 'ledger.db'}")
    await stated(made)
    rows = [
        *month(300),
        request("evil", started_at_us=NOVEMBER_US, tags={"team": EVIL}),
        request("formula", started_at_us=NOVEMBER_US, tags={"team": '=HYPERLINK("x")'}),
        request(
            "nano",
            started_at_us=NOVEMBER_US,
            tags={"team": 'größe, "quoted"'},
            cost_nano_usd=9_007_199_254_740_993,  # more digits than a double has
            attempts=[attempt(cost_nano_usd=9_007_199_254_740_993)],
        ),
    ]
    await made.append([orjson.dumps(row) for row in rows])
    yield made
    await made.close()


@pytest.fixture
async def by_team(store):
    return await cost(store, replace(ALL, by=("team",), compare=True), now=NOW)


@pytest.fixture
async def by_day(store):
    return await cost(store, replace(ALL, by=("day", "backend")), now=NOW)


def test_csv_is_exact_and_defused(by_team):
    text = as_csv(by_team)
    assert text.count("\r\n") == text.count("\n") == len(by_team.table.rows) + 1
    lines = {line["team"]: line for line in csv.DictReader(io.StringIO(text, newline=""))}
    assert lines['größe, "quoted"']["cost_usd"] == "9007199.254740993"
    assert '\'=HYPERLINK("x")' in lines
    assert '=HYPERLINK("x")' not in lines


def test_a_negative_change_is_a_number_not_a_formula_to_defuse(by_team):
    lines = list(csv.DictReader(io.StringIO(as_csv(by_team), newline="")))
    assert all(not line["change"].startswith("'") for line in lines)


def test_json_has_exact_decimals_and_the_way_to_run_it_again(by_team):
    report = orjson.loads(as_json(by_team))
    total = sum(Decimal(line["cost_usd"]) for line in report["lines"])
    assert str(total) == report["total"]["cost_usd"]
    foot = report["foot"]
    assert len(foot["digest"]) == 64
    assert foot["run_again"].startswith("weighbridge report cost --by team")
    assert foot["rows"] == report["total"]["requests"] == 303
    assert all("report rows" in line["drill_down"] for line in report["lines"])


def test_html_is_one_page_without_script_and_escapes(by_team, by_day):
    for document in (by_team, by_day):
        page = as_html(document)
        assert "<script" not in page
        assert not re.search(r"(src|href)=", page)
        assert page.count("<svg") == len(document.charts) > 0
        for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            ET.fromstring(picture)
    assert "&lt;script&gt;" in as_html(by_team)


def test_xlsx_has_formulas_native_charts_and_a_frozen_head(by_team):
    with zipfile.ZipFile(io.BytesIO(as_xlsx(by_team))) as book:
        names = book.namelist()
        sheet = ET.fromstring(book.read("xl/worksheets/sheet1.xml"))
        shared = book.read("xl/sharedStrings.xml").decode()
    assert sum(name.startswith("xl/charts/chart") for name in names) == len(by_team.charts)
    space = {"x": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    pane = sheet.find(".//x:pane", space)
    assert (pane.get("state"), pane.get("ySplit")) == ("frozen", "4")
    formulas = {cell.get("r"): cell.find("x:f", space) for cell in sheet.iterfind(".//x:c", space)}
    said = [found.text for found in formulas.values() if found is not None]
    count = len(by_team.table.rows)
    assert f"SUM(D5:D{count + 4})" in said
    assert any(text.startswith("IFERROR(D5/D$") for text in said)
    assert not any("HYPERLINK" in text for text in said)
    assert "=HYPERLINK" in shared  # as text


@pytest.fixture(params=["team", "backend", "day", "meter", "corrected"])
async def any_report(store, request):
    by = {"corrected": ("team",), "day": ("day", "backend")}.get(request.param, (request.param,))
    if request.param == "corrected":
        await stated(store, LATER)
        wanted = ratings.Wanted(since_us=NOVEMBER_US, until_us=NOVEMBER_US + MONTH_US)
        book = ratings.By(LATER, 1, lambda _: {})
        await ratings.apply(store, wanted, book, author="finance")
    euro = ("EUR", Decimal("0.85"), "a test")
    # Without the row whose correction leaves of 16 digits the last six: a cell holds 15.
    where = tuple(("team", name) for name in ("search", "support", "legal"))
    asked = replace(ALL, by=by, compare=True, where=where if request.param == "corrected" else ())
    return await cost(store, asked, now=NOW, display=euro)


async def test_a_spreadsheet_comes_to_the_same_figures(any_report):
    sheet = read(as_xlsx(any_report))
    table = any_report.table
    names = [column.name for column in table.columns]
    seen = Counter()
    for cell, formula in sheet.formulas.items():
        found = sheet.worked_out(cell)
        written = sheet.values[cell]
        if isinstance(written, str):
            assert found == written, (cell, formula)
        else:
            assert found == pytest.approx(written, rel=1e-9, abs=2e-9), (cell, formula)
        seen[formula.partition("(")[0]] += 1
    assert seen["SUM"] >= sum(column.added for column in table.columns)
    formulas = [column for column in table.columns if column.formula]
    known = [row[c.name] for c in formulas for row in table.rows if row[c.name] is not None]
    assert len(sheet.formulas) >= len(known)
    assert {"cost_eur", "corrected_eur"} & set(names)


def test_pdf_has_its_pages_numbered_and_charts_drawn(by_team, by_day):
    for document in (by_team, by_day):
        paper = as_pdf(document, now=dt.datetime(2026, 12, 2, tzinfo=dt.UTC))
        assert paper.startswith(b"%PDF-")
        pages = [
            zlib.decompress(found)
            for found in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", paper, re.DOTALL)
            if found[:1] == b"x"
        ]
        drawn = b"\n".join(pages)
        assert b"(Page 1 of " in drawn
        bars = sum(
            isinstance(shape, drawing.Rect)
            for chart in document.charts
            for shape in drawing.draw(chart).shapes
        )
        assert len(re.findall(rb" re f\b", drawn)) >= bars > 0
        assert b"/Subtype /Image" not in paper


@pytest.mark.parametrize("upright", [True, False])
def test_a_chart_is_to_scale_and_stays_in_its_frame(upright):
    chart = Chart(
        title="t",
        labels=["a", "b", "none"],
        series=[Series(name="x", values=[4, 2, 0]), Series(name="y", values=[4, 0, 0])],
        unit="requests",
        upright=upright,
    )
    made = drawing.draw(chart)
    bars = [s for s in made.shapes if isinstance(s, drawing.Rect) and s.said]
    long = [bar.height if upright else bar.width for bar in bars]
    assert long == pytest.approx([long[0], long[0], long[0] / 2])
    for bar in bars:
        assert 0 <= bar.x <= bar.x + bar.width <= made.width
        assert 0 <= bar.y <= bar.y + bar.height <= made.height


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "$0.00"), (1, "$0.000000001"), (1_230_000_000, "$1.23"), (-5_000_000, "-$0.0050"),
     (1_234_567_000_000_000, "$1,234,567.00")],
)  # fmt: skip
def test_money_is_never_rounded_to_nothing(nano, text):
    assert money(nano) == text


def test_what_is_not_known_says_so():
    assert shown(None, "usd") == "unpriced"
    assert shown(None, "share") == "–"
