"""`weighbridge prices`: quotes line by line, the book as a table, what differs, what is imported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli import app

POLICIES = Path(__file__).parents[2] / "policies"
HEAD = "backend,model,from,input_usd_per_mtok,output_usd_per_mtok,source,read_on"
HOURS = """\
version: 1
prices:
  - backend: vllm
    model: openai/gpt-oss-120b
    from: 2026-11-01
    input_usd_per_mtok: "0.08"
    output_usd_per_mtok: "0.32"
    when:
      - hours_utc: ["16:30-00:30"]
        input_usd_per_mtok: "0.04"
        output_usd_per_mtok: "0.16"
    basis: declared
    source: our own sums
    read_on: 2026-11-24
  - backend: llamacpp
    model: gemma3-270m
    from: 2026-11-01
    input_usd_per_mtok: "1.00"
    output_usd_per_mtok: "2.00"
    long_prompts_mode: marginal
    long_prompts:
      - above_prompt_tokens: 1000
        input_usd_per_mtok: "3.00"
        output_usd_per_mtok: "4.00"
    source: our own sums
    read_on: 2026-11-24
  - backend: ollama
    model: gemma3:270m
    from: 2026-11-01
    input_usd_per_mtok: "0.08"
    output_usd_per_mtok: "0.32"
    when:
      - region: elsewhere
        input_usd_per_mtok: "0.80"
        output_usd_per_mtok: "3.20"
    source: our own sums
    read_on: 2026-11-24
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(POLICIES, tmp_path / "policies"))


def run(*args: object, folder: Path | None = None, answer: str = "") -> tuple[int, str]:
    more = () if folder is None else ("--dir", folder)
    result = CliRunner().invoke(app, [str(arg) for arg in ("prices", *args, *more)], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def quoted(*args: object, folder: Path) -> dict[str, object]:
    code, output = run("quote", *args, "--json", folder=folder)
    assert code == 0, output
    (one,) = json.loads(output)["quotes"]
    return dict(one)


# --- quote ------------------------------------------------------------------------------------


def test_a_quote_says_what_each_meter_costs_and_which_row_says_so(folder):
    code, output = run(
        "quote", "gpt-6-sol", "--backend", "openai", "--input", 100_000, "--cached", 60_000,
        "--cache-write", 30_000, "--output", 1500, "--reasoning", 500, "--searches", 2,
        "--at", "2026-11-24T12:00", folder=folder,
    )  # fmt: skip
    assert code == 0
    lines = output.splitlines()
    assert lines[:11] == [
        "prices of 2026-11-24T12:00+00:00",
        "",
        "openai/gpt-6-sol  $0.142",
        "  meter           quantity                 unit price  amount",
        "  input             10,000        $2.00 per 1M tokens   $0.02",
        "  cache_read        60,000        $0.20 per 1M tokens  $0.012",
        "  cache_write_5m    30,000        $2.50 per 1M tokens  $0.075",
        "  output             1,000       $10.00 per 1M tokens   $0.01",
        "  reasoning            500       $10.00 per 1M tokens  $0.005  as output: no price of its own",
        "  search_call            2  $10.00 per 1,000 searches   $0.02",
        "  total                                         exact  $0.142",
    ]
    told = dict(
        re.findall(r"^  (price|since|source|read on|written at) +(.+)$", output, re.MULTILINE)
    )
    assert told["since"] == "2026-10-14"
    assert told["source"].startswith("genai-prices 0.2.3 (https://developers.openai.com/")
    assert re.fullmatch(rf"{folder}/prices/closed-apis\.yaml:\d+:5", told["written at"])
    assert re.fullmatch(r"openai/gpt-6-sol@2026-10-14#[0-9a-f]{8}", told["price"])


@pytest.mark.parametrize(
    ("prompt", "nano", "tier"),
    [(272_000, 554_000_000, ""), (272_001, 1_103_004_000, "over 272,000 prompt tokens")],
)
def test_a_longer_prompt_changes_the_price_of_the_whole_request(folder, prompt, nano, tier):
    one = quoted(
        "openai/gpt-6-sol", "--input", prompt, "--output", 1000, "--at", "2026-11-24", folder=folder
    )
    assert (one["total_nano_usd"], one["tier"]) == (nano, tier)


def test_cache_writes_cost_by_how_long_they_are_kept(folder):
    one = quoted(
        "claude-sonnet-5-5", "--backend", "anthropic", "--input", 5000, "--cache-write", 2000,
        "--cache-write-1h", 3000, "--at", "2026-11-24", folder=folder,
    )  # fmt: skip
    assert [(line["meter"], line["amount_usd"]) for line in one["lines"]] == [
        ("cache_write_5m", "0.005"),
        ("cache_write_1h", "0.012"),
    ]
    assert one["total_nano_usd"] == 17_000_000


def test_a_service_tier_has_its_price_from_the_day_it_was_known(folder):
    asked = ("gpt-6-luna", "--input", 1_000_000, "--service-tier", "batch")
    assert quoted(*asked, "--at", "2026-10-14", folder=folder)["exact_usd"] == "0.10"
    code, output = run("quote", *asked, "--at", "2026-10-13T23:59:59.999999", folder=folder)
    assert code == 1
    assert output.splitlines()[-1] == (
        "openai/gpt-6-luna  unpriced: no price of the service tier 'batch';"
        " it has fast, flex, priority"
    )


@pytest.mark.parametrize(
    ("at", "exact", "hours"),
    [
        ("2026-11-24T16:29:59", "0.08", ""),
        ("2026-11-24T16:30:00", "0.04", "16:30-00:30 UTC"),
        ("2026-11-25T00:29:59", "0.04", "16:30-00:30 UTC"),
        ("2026-11-25T00:30:00", "0.08", ""),
        ("2026-11-24T17:30:00+01:00", "0.04", "16:30-00:30 UTC"),
    ],
)
def test_hours_are_half_open_and_in_utc(folder, at, exact, hours):
    (folder / "prices" / "own.yaml").write_text(HOURS)
    one = quoted("vllm/openai/gpt-oss-120b", "--input", 1_000_000, "--at", at, folder=folder)
    assert (one["exact_usd"], one["hours"]) == (exact, hours)


def test_a_region_is_the_backends_unless_another_is_asked_for(folder):
    (folder / "prices" / "own.yaml").write_text(HOURS)
    asked = ("gemma3:270m", "--input", 1_000_000, "--at", "2026-11-24")
    assert quoted(*asked, folder=folder)["region"] == ""
    one = quoted(*asked, "--region", "elsewhere", folder=folder)
    assert (one["exact_usd"], one["region"]) == ("0.80", "elsewhere")


def test_a_marginal_scale_has_a_line_on_each_side_of_its_bound(folder):
    (folder / "prices" / "own.yaml").write_text(HOURS)
    one = quoted(
        "gemma3-270m", "--input", 1500, "--output", 10, "--at", "2026-11-24", folder=folder
    )
    told = [(line["quantity"], line["unit_price_usd"], line["remark"]) for line in one["lines"]]
    assert told == [
        (1000, "1.00", ""),
        (500, "3.00", "beyond 1,000 tokens"),
        (10, "2.00", ""),
    ]
    assert one["total_nano_usd"] == 2_520_000


def test_the_cheapest_comes_first_and_what_has_no_price_last(folder):
    code, output = run(
        "quote",
        "gpt-oss-120b",
        "--input",
        1000,
        "--output",
        100,
        "--at",
        "2026-11-24",
        "--json",
        folder=folder,
    )
    found = json.loads(output)["quotes"]
    assert code == 0
    assert [(one["backend"], one["total_nano_usd"]) for one in found] == [
        ("baseten", 150_000),
        ("together", 210_000),
        ("vllm", None),
    ]
    assert found[2]["unpriced"].startswith("no price of it on ")


def test_an_alias_is_all_its_targets(folder):
    _, output = run("quote", "chat-large", "--input", 10, "--json", folder=folder)
    assert len(json.loads(output)["quotes"]) == 9


def test_a_total_is_shown_in_another_currency_with_the_rate_and_its_day(folder):
    asked = ("quote", "openai/gpt-6-sol", "--input", 1_000_000, "--service-tier", "priority")
    code, output = run(*asked, "--currency", "eur", folder=folder)
    assert code == 0
    assert "openai/gpt-6-sol  $8 = 6.80214 EUR (at 0.850267835 of 2026-05-08)" in output
    code, output = run(*asked, "--currency", "EUR", "--at", "2026-05-07", folder=folder)
    assert code == 1
    assert output.startswith("no rate of EUR on 2026-05-07: add one under currencies: in ")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (
            ("gpt-7", "--input", 1),
            "no model or alias 'gpt-7'; nearest: gpt-6-sol, gpt-6-luna, gpt-o",
        ),
        (
            ("gpt-6-sol", "--backend", "opnai", "--input", 1),
            "no backend 'opnai'; did you mean 'open",
        ),
        (("gpt-6-sol", "--backend", "google", "--input", 1), "no gpt-6-sol at google; it is at op"),
        (("gpt-6-sol",), "nothing to quote: say at least --input and --output"),
        (
            ("gpt-6-sol", "--input", 100, "--cached", 80, "--cache-write", 30),
            "--input 100 is less than its parts: 80 cache_read + 30 cache_write_5m = 110; --input is",
        ),
        (
            ("gpt-6-sol", "--output", 10, "--reasoning", 11),
            "--output 10 is less than its parts: 11 reasoning = 11; --output is the whole",
        ),
        (("gpt-6-sol", "--input", 1, "--at", "noon"), "--at noon: not a date or a time; like 2026"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_why(folder, args, told):
    code, output = run("quote", *args, folder=folder)
    assert code == 2
    assert output.startswith(told)


def test_a_negative_count_is_wrong_usage(folder):
    assert run("quote", "gpt-6-sol", "--input", -1, folder=folder)[0] == 2


def test_a_meter_without_a_price_is_named(folder):
    code, output = run(
        "quote", "together/zai-org/GLM-5.3", "--input", 10, "--audio-input", 5, folder=folder
    )
    assert code == 1
    assert "unpriced: no price of input_audio in together/zai-org/GLM-5.3@2026-11-01#" in output


# --- list -------------------------------------------------------------------------------------


def test_the_list_has_every_model_and_those_without_a_price_last(folder):
    code, output = run("list", "--at", "2026-11-24", folder=folder)
    lines = output.splitlines()
    assert code == 0
    assert lines[0] == "prices of 2026-11-24T00:00+00:00"
    assert lines[-1].split() == ["ollama/gemma3:270m", "unpriced"]
    (luna,) = [line for line in lines if line.startswith("openai/gpt-6-luna")]
    assert luna.split()[1:5] == ["2026-10-14", "$0.10", "$0.01", "$0.50"]


def test_the_history_of_a_model(folder):
    _, output = run("list", "--model", "GEMINI-3.8", "--all", "--json", folder=folder)
    told = [(row["from"], row["until"], row["input_usd_per_mtok"]) for row in json.loads(output)]
    assert told == [
        ("2026-10-14", "2026-11-01", "0.75"),
        ("2026-11-01", "2027-01-01", "0.75"),
        ("2027-01-01", None, "1.50"),
    ]


def test_an_hour_of_a_gpu(folder):
    code, output = run("list", "--gpu-hours", "--at", "2026-11-24", "--json", folder=folder)
    rows = json.loads(output)
    assert code == 0
    (fireworks,) = [r for r in rows if r["provider"] == "Fireworks" and r["gpu"].startswith("H100")]
    assert (fireworks["usd_per_gpu_hour"], fireworks["from"]) == ("8.00", "2026-10-07")
    assert all(row["source"] for row in rows)
    runpod = [r for r in rows if (r["provider"], r["gpu"]) == ("RunPod Secure", "H100-SXM-80GB")]
    assert [row["usd_per_gpu_hour"] for row in runpod] == ["3.99"]  # 3.49 was before
    assert run("list", "--gpu-hours", folder=folder)[1].startswith("US dollars for an hour")


def test_a_backend_that_is_not_there(folder):
    assert run("list", "--backend", "opena", folder=folder) == (
        2,
        "no backend 'opena'; did you mean 'openai'?\n",
    )


# --- check ------------------------------------------------------------------------------------


def test_the_shipped_prices_agree_with_both_packages(folder):
    code, output = run("check", "--day", "2026-11-24", "--strict", "--json", folder=folder)
    body = json.loads(output)
    assert (code, body["ok"]) == (0, True)
    assert body["compared"] == 20
    assert {one["kind"] for one in body["findings"]} == {"missing", "unchecked", "lacks"}
    assert {one["severity"] for one in body["findings"]} == {"note"}


def sheet(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "sheet.csv"
    file.write_text("\n".join((HEAD, *lines)) + "\n")
    return file


def test_a_doctored_source_is_a_disagreement_with_its_place(folder, tmp_path):
    file = sheet(tmp_path, "openai,gpt-6-sol,2026-10-01,2.50,10.00,doctored,2026-11-24")
    code, output = run("check", "--source", file, "--day", "2026-11-24", folder=folder)
    assert code == 1
    first = output.splitlines()[0]
    assert re.match(rf"{folder}/prices/closed-apis\.yaml:\d+:5: openai/gpt-6-sol: ", first)
    assert "input_usd_per_mtok: ours 2.00, " in first
    assert "says 2.50 since 2026-10-01 (+25.0 %); weighbridge prices import" in first
    both = ("--source", "genai-prices", "--source", file)
    code, output = run("check", *both, "--day", "2026-11-24", folder=folder)
    assert code == 0
    assert "; genai-prices 0.2.3 agrees with ours; " in output


def test_a_price_that_is_missing_where_the_secret_is_set_fails(folder, monkeypatch):
    file = folder / "prices" / "managed.yaml"
    text = file.read_text()
    at = text.index("  - backend: together\n    model: openai/gpt-oss-120b")
    file.write_text(text[:at])
    asked = ("check", "--backend", "together", "--day", "2026-11-24")
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    code, output = run(*asked, folder=folder)
    assert code == 0
    assert "catalog.yaml:" in output.splitlines()[0]
    assert "warning: together/openai/gpt-oss-120b: no price, for the day it is conf" in output
    monkeypatch.setenv("TOGETHER_API_KEY", "sk-x")
    code, output = run(*asked, folder=folder)
    assert code == 1
    assert (
        "together/openai/gpt-oss-120b: no price; weighbridge prices import genai-prices"
        " --backend together --model openai/gpt-oss-120b"
    ) in output


def test_prices_grow_old(folder):
    code, output = run("check", "--day", "2027-03-01", folder=folder)
    assert code == 0
    assert output.count("warning: ") >= 21
    assert "read 97 days ago, on 2026-11-24; read it again and append a row, or import it" in output
    assert run("check", "--day", "2027-03-01", "--strict", folder=folder)[0] == 1


def test_a_vendor_that_we_do_not_know_can_be_named(folder):
    catalog = folder / "catalog.yaml"
    text = catalog.read_text()
    catalog.write_text(
        text.replace("https://inference.baseten.co/v1", "https://llm.example.com/v1")
    )
    asked = ("check", "--backend", "baseten", "--day", "2026-11-24")
    _, output = run(*asked, folder=folder)
    assert output.count("no source knows it: nothing to compare with") == 3
    _, output = run(*asked, "--provider", "baseten=baseten", folder=folder)
    assert output.startswith("3 models compared with genai-prices ")
    assert run(*asked, "--provider", "baseten", folder=folder)[0] == 2


def without(package: str, *args: object) -> tuple[int, str]:
    """The command where a package is not installed."""
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from gateway.cli import main\n"
        f"sys.argv = {['weighbridge', 'prices', *map(str, args)]!r}\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("genai_prices", "genai-prices", "prices"), ("litellm", "litellm", "litellm")],
)
def test_a_package_that_is_not_there_is_named_with_what_to_install(folder, package, name, extra):
    missing = f"{name} is not installed: pip install 'weighbridge[{extra}]'"
    code, output = without(package, "check", "--day", "2026-11-24", "--dir", folder)
    assert code == 0
    assert f"{missing}; not compared with it" in output
    code, output = without(package, "import", name, "--dir", folder)
    assert (code, output) == (2, f"{missing}\n")


# --- import -----------------------------------------------------------------------------------


def texts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "prices").iterdir()}


def test_an_import_shows_the_difference_asks_and_appends(folder, tmp_path):
    file = sheet(
        tmp_path,
        "openai,gpt-6-sol,2026-12-01,2.20,10.00,our contract,2026-11-24",
        "together,acme/m1,2026-12-01,1.00,2.00,their sheet,2026-11-24",
    )
    before = texts(folder)
    code, output = run("import", file, folder=folder, answer="n\n")
    assert (code, texts(folder)) == (0, before)
    assert "changed: openai/gpt-6-sol from 2026-12-01\n" in output
    assert "  input_usd_per_mtok 2.00 -> 2.20 (+10.0 %)\n" in output
    assert "  flex: no longer said\n" in output
    assert "new: together/acme/m1 from 2026-12-01\n" in output
    assert f"  source: their sheet ({file}:3)\n" in output
    assert "1 changed, 1 new\n" in output
    code, output = run("import", file, folder=folder, answer="y\n")
    assert code == 0
    after = texts(folder)
    assert set(after) == set(before)
    for name, content in after.items():
        assert content.startswith(before[name]), "what is there stays byte for byte"
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"closed-apis.yaml", "managed.yaml"}
    asked = ("quote", "openai/gpt-6-sol", "--input", 1_000_000, "--json")
    for day, price in (("2026-11-30", "4.00"), ("2026-12-01", "2.20")):
        _, output = run(*asked, "--at", day, folder=folder)
        assert json.loads(output)["quotes"][0]["exact_usd"] == price
    code, output = run("import", file, "--yes", folder=folder)
    assert (code, output, texts(folder)) == (0, "2 same\n", after)


@pytest.mark.parametrize("source", ["genai-prices", "litellm"])
def test_importing_what_was_shipped_changes_nothing(folder, source):
    before = texts(folder)
    code, output = run("import", source, "--from", "2026-11-24", "--yes", folder=folder)
    assert code == 0
    assert re.search(r"^\d+ same$", output, re.MULTILINE)
    assert "simplismart/meta-llama/Meta-Llama-3.1-8B-Instruct: whose prices hold there" in output
    assert texts(folder) == before


def test_an_empty_book_is_filled_and_agrees_with_its_source(folder):
    for name in ("closed-apis.yaml", "managed.yaml"):
        (folder / "prices" / name).write_text("version: 1\nprices: []\n")
    code, output = run("import", "genai-prices", "--from", "2026-11-01", "--yes", folder=folder)
    assert code == 0
    assert "left out, no meter of ours: storage_searches_kcount 2.5\n" in output
    assert "`weighbridge prices rerate --since 2026-10-12` shows what they would" in output
    asked = ("check", "--source", "genai-prices", "--day", "2026-11-24", "--json")
    code, output = run(*asked, folder=folder)
    assert code == 0
    kinds = {one["kind"] for one in json.loads(output)["findings"]}
    assert kinds == {"missing"}  # of what genai-prices does not know


def test_one_backend_and_one_model(folder):
    (folder / "prices" / "closed-apis.yaml").write_text("version: 1\nprices: []\n")
    asked = ("import", "litellm", "--backend", "azure", "--from", "2026-11-01", "--yes")
    code, output = run(*asked, folder=folder)
    assert code == 0
    assert "new: azure/gpt-6-sol from 2026-11-01\n" in output
    assert "1 new\n" in output
    code, output = run("import", "litellm", "--model", "gpt-6-soll", folder=folder)
    assert (code, output) == (2, "no model 'gpt-6-soll'; did you mean 'gpt-6-sol'?\n")


def test_a_model_that_the_catalog_lacks_can_be_taken_for_its_backend(folder):
    asked = ("import", "genai-prices", "--backend", "openai", "--model", "gpt-5.4", "--yes")
    code, output = run(*asked, folder=folder)
    assert code == 0
    assert "new: openai/gpt-5.4 from " in output
    assert b"model: gpt-5.4\n" in texts(folder)["closed-apis.yaml"]


def test_a_sheet_with_a_mistake_leaves_everything_as_it_was(folder, tmp_path):
    file = sheet(
        tmp_path,
        "openai,gpt-6-sol,2026-12-01,2.20,10.00,our contract,2026-11-24",
        "together,acme/m1,2026-12-01,1e-7,2.00,their sheet,2026-11-24",
    )
    before = texts(folder)
    result = CliRunner().invoke(app, ["prices", "import", str(file), "--dir", str(folder), "-y"])
    assert f"{file}:3:4: prices[1].input_usd_per_mtok: '1e-7' is not written plainly" in str(
        result.exception
    )
    assert texts(folder) == before


def test_rows_that_the_book_could_not_take_leave_everything_as_it_was(folder, tmp_path):
    (tmp_path / "sheet.csv").write_text(
        f"{HEAD},until\nopenai,gpt-6-sol,2026-10-01,2.20,10.00,s,2026-11-24,2026-10-05\n"
        "together,acme/m1,2026-12-01,1.00,2.00,s,2026-11-24,\n"
    )
    before = texts(folder)
    code, output = run("import", tmp_path / "sheet.csv", "--yes", folder=folder)
    assert code == 1
    assert "nothing written; with these rows the book would not load:" in output
    assert "leaves a hole before the next price of openai/gpt-6-sol" in output
    assert texts(folder) == before


def test_a_row_of_the_same_day_is_left_to_a_person(folder, tmp_path):
    file = sheet(tmp_path, "openai,gpt-6-sol,2026-10-14,2.20,10.00,s,2026-11-24")
    before = texts(folder)
    code, output = run("import", file, "--yes", folder=folder)
    assert (code, texts(folder)) == (0, before)
    assert output.startswith("against: openai/gpt-6-sol from 2026-10-14\n")
    assert "not taken: begins on the same day, and rows are not edited\n" in output


def test_a_source_that_is_not_there(folder, tmp_path):
    assert run("import", tmp_path / "no.csv", folder=folder) == (
        2,
        f"{tmp_path}/no.csv: no such file; a source is genai-prices, litellm or a file\n",
    )


def test_json_shows_and_writes_only_when_told_to(folder, tmp_path):
    file = sheet(tmp_path, "openai,gpt-6-sol,2026-12-01,2.20,10.00,s,2026-11-24")
    before = texts(folder)
    code, output = run("import", file, "--json", folder=folder)
    (change,) = json.loads(output)["changes"]
    assert (code, texts(folder)) == (0, before)
    assert change["what"] == "changed"
    assert change["differences"][0] == {
        "condition": "standard",
        "key": "input_usd_per_mtok",
        "ours": "2.00",
        "theirs": "2.20",
        "per_cent": "+10.0",
    }
    code, output = run("import", file, "--json", "--yes", folder=folder)
    assert json.loads(output)["written"]
    assert texts(folder) != before
