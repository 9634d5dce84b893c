"""`make test`: real servers, every test, and the README's table of promises from what was measured.

Starts one real Postgres and one real Valkey for the whole run, then pytest. `--engines` runs the
tests that need a real vLLM instead. Further arguments go to pytest; with any, nothing is written.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.promises import BEGIN, END, FIGURES, PROMISES, table
from tests.servers import servers

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    arguments = sys.argv[1:]
    engines = "--engines" in arguments
    chosen = [a for a in arguments if a != "--engines"]
    with servers() as environment, tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch) / "figures.jsonl"
        command = [
            *(sys.executable, "-m", "pytest"),
            *("-m", "engines" if engines else "not engines"),
            *(["--numprocesses", "2", "--dist", "loadgroup"] if not engines else []),
            "--durations=8",
            *chosen,
        ]
        status = subprocess.call(
            command, cwd=ROOT, env={**os.environ, **environment, FIGURES: str(figures)}
        )
        if status or engines or chosen:
            return status
        return write_table(figures)


def write_table(path: Path) -> int:
    """Put the figures into the README; 1 if a promise was not measured."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    figures = dict(json.loads(line) for line in lines)
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(figures)}\n{END}{after}", encoding="utf-8")
    missing = sorted(PROMISES.keys() - figures.keys())
    if missing:
        print(f"promised but not measured in this run: {', '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
