"""The official validator over a generated month of the FOCUS export: `make test-focus`.

The validator needs Python 3.12 or newer and half a gigabyte of packages that are not ours, so it has
an environment of its own below `.clients/`, and `make test` goes without it. It reads the rules of
FOCUS 1.2 that come with it, opens them relative to its own folder, and ends with 0 whatever it
finds: its words are read here.

Exit status: 0 as expected, 1 a rule failed or was not looked at, 2 there is no such Python.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger.store import Store, corrections
from tests.unit.reports.month import NOVEMBER_US
from tests.unit.reports.priced import attempt, fill, month

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".clients" / "focus"
REQUIREMENTS = ("focus-validator==2.2.1", "pyarrow<21")
PYTHONS = ("python3.12", "python3.13", "python3.14")
MODEL = "1.2.0.1"
# What we support of what the specification makes conditional: the more, the more rules apply.
CRITERIA = (
    *("ACCOUNT_NAMING", "BILLING_BASED_ON_PROVISIONED_RESOURCES", "MULTIPLE_BILLING_ACCOUNT_TYPES"),
    *("MULTIPLE_PRICING_CATEGORIES", "MULTIPLE_SUB_ACCOUNT_TYPES", "NEGOTIATED_PRICING"),
    *("PUBLIC_PRICE_LIST", "REGION", "RESOURCE_TYPE_ASSIGNMENT", "SUB_ACCOUNT", "TAGGING"),
    *("UNIT_PRICING", "USAGE_MEASUREMENT"),
)
# That an invoice's id is null and that it is not null are both rules, and in this version of the
# validator neither has its condition: one of the two fails for any file. Ours has provisional ids.
CONTRADICTED = {"InvoiceId-C-004-C"}
PASSED_MIN = 280  # of 578: the others are conditional on what we do not have, or cannot be checked


def interpreter() -> str | None:
    """A Python the validator runs on."""
    if sys.version_info >= (3, 12):
        return sys.executable
    for name in PYTHONS:
        found = shutil.which(name)
        if found and not subprocess.run([found, "-c", ""], capture_output=True).returncode:
            return found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    there = [p for name in PYTHONS for p in sorted(pyenv.glob(f"*/bin/{name}"))]
    return str(there[0]) if there else None


def environment(python: str) -> Path:
    """The folder of the validator's environment, built where it is not there yet."""
    stamp, said = FOLDER / ".complete", "\n".join(REQUIREMENTS)
    if not stamp.is_file() or stamp.read_text() != said:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(FOLDER)], check=True)
        pip = [str(FOLDER / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", *REQUIREMENTS], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"the validator could not be installed:\n{done.stderr}")
        stamp.write_text(said)
    return FOLDER


async def ledger(home: Path) -> None:
    """A month with every kind of row in it."""
    store = await Store.connect(f"sqlite:///{home / 'ledger.db'}")
    records = list(month(1_500))
    lost = attempt("openai", "gpt-x", NOVEMBER_US, uncached=100, output=7)
    lost.rates_id = "openai/gpt-x@2020-01-01#00000000"
    records[0].attempts = [lost]
    await fill(store, home / "journal", records)
    corrected = next(r for r in records[1:] if r.attempts[0].rates_id)
    async with store._begin() as connection:
        await connection.execute(
            sa.insert(corrections).values(
                run=1,
                request_id=corrected.id,
                attempt=1,
                request_started_at_us=corrected.started_at_us,
                rates_id=corrected.attempts[0].rates_id,
                cost_nano_usd=5,
                delta_nano_usd=5 - (corrected.attempts[0].cost_nano_usd or 0),
            )
        )
    await store.close()


def validated(folder: Path, file: Path) -> list[str]:
    """What is wrong, in words; prints the validator's count."""
    packages = next(folder.glob("lib/python*/site-packages"))
    criteria = ",".join(f"{name}_SUPPORTED" for name in CRITERIA)
    done = subprocess.run(
        [
            *(str(folder / "bin" / "focus-validator"), "--data-file", str(file)),
            *("--validate-version", MODEL, "--block-download", "--focus-dataset", "CostAndUsage"),
            *("--applicability-criteria", criteria, "--show-violations"),
        ],
        cwd=packages,
        capture_output=True,
        text=True,
        timeout=600,
    )
    count = re.search(r"Total: (\d+) \| Pass: (\d+) \| Fail: (\d+) \| Skipped: (\d+)", done.stdout)
    if count is None:
        return [f"the validator did not get to its end:\n{done.stdout}\n{done.stderr}"]
    print(f"{file.name}: {count[0]}")
    wrong = [
        line
        for line in done.stdout.splitlines()
        if (found := re.match(r"❌ ([\w-]+): FAIL", line)) and found[1] not in CONTRADICTED
    ]
    if int(count[2]) < PASSED_MIN:
        wrong.append(f"only {count[2]} rules were looked at and hold; {PASSED_MIN} did before")
    return wrong


def main() -> int:
    """Build, generate, validate."""
    python = interpreter()
    if python is None:
        print("focus-validator needs Python 3.12 or newer: install one, or put it on the PATH")
        return 2
    folder = environment(python)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.environ |= {
            "WEIGHBRIDGE_HOME": name,
            "WEIGHBRIDGE_DATABASE_URL": f"sqlite:///{home / 'ledger.db'}",
        }
        asyncio.run(ledger(home))
        for version in ("1.2", "1.3"):
            for granularity in ("day", "hour"):
                file = home / f"focus-{version}-{granularity}.csv"
                words = ["report", "focus", "--month", "2026-11", "--granularity", granularity]
                words += ["--focus-version", version, "-o", str(file)]
                done = CliRunner().invoke(app, words)
                wrong = validated(folder, file) if not done.exit_code else [done.output]
                passed, failed = passed + (not wrong), failed + bool(wrong)
                print("\n".join(wrong), end="\n" if wrong else "")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
