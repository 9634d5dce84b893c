"""The benchmark of decisions runs, and a full run of the other one leaves its section alone.

No figure is judged here; see RESULTS.md.
"""

from __future__ import annotations

from tests.bench.__main__ import OTHERS, _write
from tests.bench.decide import ROUTES, TARGETS, main, slope


def test_it_prints_a_table_of_all_it_measured(capsys):
    assert main(["--calls", "2", "--rounds", "1"]) in (0, 1)
    out = capsys.readouterr().out
    assert [f"| {n} |" in out for n in TARGETS] == [True] * len(TARGETS)
    assert f"| | {' | '.join(map(str, ROUTES))} |" in out


def test_a_straight_line_is_one():
    each, crooked = slope((1, 2, 4), (5.0, 7.0, 11.0))
    assert (each, round(crooked, 9)) == (2.0, 0.0)
    assert slope((1, 2, 4), (1.0, 4.0, 16.0))[1] > 0.01


def test_a_page_is_replaced_but_for_what_others_wrote(tmp_path):
    page = tmp_path / "RESULTS.md"
    _write(page, "old\n")
    assert page.read_text() == "old\n"
    page.write_text(page.read_text() + OTHERS + "\n# Theirs\n")
    _write(page, "new\n")
    assert page.read_text() == "new\n" + OTHERS + "\n# Theirs\n"
