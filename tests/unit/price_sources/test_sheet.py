"""Price sheets: a CSV becomes rows, and every mistake has a line and a column."""

from __future__ import annotations

import pytest

from gateway.domain.catalog import Target
from gateway.policy.source import ConfigErrors
from gateway.price_sources import sheet

HEAD = "backend,model,from,input_usd_per_mtok,output_usd_per_mtok,source,read_on"
GOOD = f"{HEAD}\nacme,m1,2026-12-01,1.00,2.00,their sheet,2026-11-24\n"
FULL = """\
backend,model,from,service_tier,hours_utc,above_prompt_tokens,input_usd_per_mtok,output_usd_per_mtok,currency,source,read_on
acme,m1,2026-12-01,,,,1.00,2.00,USD,their sheet,2026-11-24
acme,m1,2026-12-01,,,200000,2.00,3.00,,,
acme,m1,2026-12-01,batch,,,0.50,1.00,,,
acme,m1,2026-12-01,batch,,200000,1.00,1.50,,,
acme,m1,2026-12-01,,16:30-00:30 05:00-06:00,,0.10,0.20,,,
"acme","m2, the second",2027-01-01,,,,0.000000001,9,,"a ""sheet"" of theirs",2026-11-24
"""


def mistakes(text: str, name: str = "s.csv") -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        sheet.offers(text, name)
    return [str(problem) for problem in caught.value.problems]


def test_a_line_is_a_row():
    (offer,) = sheet.offers(GOOD, "s.csv")
    assert offer.target == Target("acme", "m1")
    assert offer.said[0].since == "2026-12-01"
    assert offer.said[0].place == "s.csv:2"
    assert offer.said[0].row is not None
    assert offer.said[0].row.input_usd_per_mtok == "1.00"


def test_conditions_lie_inside_the_row_of_their_day():
    first, second = sheet.offers(FULL, "s.csv")
    row = first.said[0].row
    assert row is not None
    assert [t.above_prompt_tokens for t in row.long_prompts] == [200_000]
    batch, night = row.when
    assert (batch.service_tier, batch.long_prompts[0].output_usd_per_mtok) == ("batch", "1.50")
    assert night.hours_utc == ["16:30-00:30", "05:00-06:00"]
    assert second.target.model == "m2, the second"


def test_a_file_with_a_mark_crlf_and_blank_lines_is_the_same():
    text = GOOD.replace("\n", "\r\n") + "\r\n,,,,,,\r\n"
    assert sheet.offers(text, "s.csv") == sheet.offers(GOOD, "s.csv")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            ("input_usd_per_mtok", "input_usd"),
            "s.csv:1:4: [4]: unknown column 'input_usd'; did you",
        ),
        (("output_usd_per_mtok", "widgets_usd"), "s.csv:1:5: [5]: unknown column 'widgets_usd'"),
        (("model,from", "model,model"), "s.csv:1:3: [3]: a second column 'model'"),
        (("1.00", "-1.00"), "s.csv:2:4: prices[0].input_usd_per_mtok: '-1.00' is negative"),
        (
            ("1.00", "1e-7"),
            "s.csv:2:4: prices[0].input_usd_per_mtok: '1e-7' is not written plainly",
        ),
        (
            ("1.00", "0.1234567891"),
            "s.csv:2:4: prices[0].input_usd_per_mtok: '0.1234567891' has more than nine digits",
        ),
        (("1.00", "1,00"), "s.csv:2:1: 8 cells, not 7"),
        (("1.00", "0"), "s.csv:2:4: prices[0].input_usd_per_mtok: a price of 0"),
        (("1.00", ""), "s.csv:2:1: prices[0]: no input_usd_per_mtok"),
        (("2026-12-01", "1.12.2026"), "s.csv:2:3: [2].from: expected a date, YYYY-MM-DD"),
        ((",their sheet", ","), "s.csv:2:1: prices[0].source: missing key 'source'"),
        (("m1", ""), "s.csv:2:1: prices[0].model: missing key 'model'"),
        (("acme,", '"acme,'), "s.csv:2:1: not CSV: unexpected end of data"),
    ],
)
def test_a_mistake_is_told_at_its_place(changed, told):
    found = mistakes(GOOD.replace(*changed, 1))
    assert any(line.startswith(told) for line in found), found


def test_another_currency_is_not_taken_for_dollars():
    (line,) = mistakes(FULL.replace("2.00,USD", "2.00,EUR"))
    assert line == (
        "s.csv:2:9: [2].currency: EUR is not the currency of prices; convert to USD first"
    )


def test_the_same_conditions_twice():
    again = GOOD + GOOD.splitlines()[1].replace("1.00", "3.00") + "\n"
    assert mistakes(again) == ["s.csv:3:1: [3].backend: the same conditions as line 2"]


def test_conditions_without_the_row_they_lie_in():
    lines = FULL.splitlines(keepends=True)
    (line,) = mistakes("".join([lines[0], lines[3]]))
    assert line.startswith("s.csv:2:1: prices[0]: no line without conditions")
    (line,) = mistakes("".join([lines[0], lines[1], lines[4]]))
    assert line.startswith("s.csv:3:1: prices[0].when[0]: no line without above_prompt_tokens")


def test_prices_that_overlap_in_time():
    text = GOOD.replace("read_on\n", "read_on,until\n").replace("11-24\n", "11-24,2027-02-01\n")
    text += "acme,m1,2027-01-01,1.00,2.00,their sheet,2026-11-24,\n"
    assert mistakes(text) == [
        "s.csv:3:3: prices[1].from: overlaps with line 2, which ends on 2027-02-01"
    ]


def test_hours_that_overlap():
    (line,) = mistakes(FULL + "acme,m1,2026-12-01,,05:30-07:00,,0.10,0.20,,,\n")
    assert "overlaps with" in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "s.csv:1:1: backend: no column 'backend'"),
        (HEAD + "\n", "s.csv:1:1: no prices in it"),
        (GOOD.replace(",", ";"), "s.csv:1:1: its cells are separated by ';'; save it with commas"),
        (GOOD.replace("m1", "m\udce9"), "s.csv:2:1: not UTF-8 text; save it so"),
        ("\0\0", "s.csv:1:1: not UTF-8 text"),
        ("x" * 1_100_000, "s.csv:1:1: larger than 1048576 bytes"),
    ],
)
def test_what_is_no_sheet_at_all(text, told):
    assert mistakes(text)[0].startswith(told)


def test_a_yaml_sheet_is_read_as_our_own_files_are():
    text = (
        "version: 1\nprices:\n  - backend: acme\n    model: m1\n    from: 2026-12-01\n"
        '    input_usd_per_mtok: "1.00"\n    output_usd_per_mtok: "2.00"\n'
        "    source: s\n    read_on: 2026-11-24\n"
    )
    (offer,) = sheet.offers(text, "vendor.yaml")
    assert offer.said[0].place == "vendor.yaml:3"
    assert (
        "vendor.yaml:6:25: prices[0].input_usd_per_mtok: expected text, not the number 1.0;"
        " quote it"
    ) in mistakes(text.replace('"1.00"', "1.00"), "vendor.yaml")


def test_what_a_yaml_sheet_has_beside_prices_is_not_dropped_in_silence():
    text = (
        'version: 1\ncurrencies:\n  - currency: EUR\n    per_usd: "0.85"\n'
        "    from: 2026-05-08\n    source: s\n    read_on: 2026-05-08\n"
    )
    assert mistakes(text, "v.yaml") == [
        "v.yaml:2:1: currencies: only prices are imported; copy these by hand"
    ]


def test_a_date_that_is_none_is_told_where_it_stands_and_not_by_the_next_line():
    wrong = FULL.replace("2026-12-01", "01.12.2026", 1)
    assert [line.partition(" expected")[0] for line in mistakes(wrong)] == ["s.csv:2:3: [2].from:"]
