"""What the detectors cost: microseconds a request, beside the same patterns in stdlib `re`.

    python -m tests.bench.detect

Best of several rounds of one process on whatever machine this is. The texts are prose and code with
the numbers, dates and versions that such texts have; nothing in them is found. `re` is given the
same patterns one by one, which is how it would be used; it has no set, and no bound on its time.
"""

from __future__ import annotations

import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from gateway.domain.catalog import Catalog
from gateway.policy.detect import Detectors, joined, read
from gateway.policy.detectors import DETECTORS

SIZES = (300, 2_000, 24_000)
ROUNDS, CALLS = 7, 200
SENTENCES = """\
the quick brown fox jumps over a lazy dog and returns with 42 apples at 10:30 on 2026-11-23;
 def total(self): return self.value + None # v1.2.3 import os path = call(x, y) {'a': 1}"""
WORDS = SENTENCES.split()


def text(size: int, words: list[str] = WORDS) -> str:
    rnd = random.Random(size)
    return " ".join(rnd.choice(words) for _ in range(size))[:size]


def microseconds(work: Callable[[], object]) -> float:
    work()
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            work()
        best = min(best, (time.perf_counter() - start) / CALLS)
    return best * 1e6


def chat(*contents: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": c} for c in contents]}


def main() -> None:
    catalog = Catalog(
        privacy_classes=("a", "b"),
        backends={},
        aliases={},
        digest="",
        detectors=dict.fromkeys(DETECTORS, 1),
    )
    start = time.perf_counter()
    detectors = Detectors.build(catalog)
    built_ms = (time.perf_counter() - start) * 1000
    stdlib = [
        re.compile(pattern.replace(r"\x80-\xff", "\x80-\U0010ffff"), re.ASCII)
        for detector in DETECTORS.values()
        for pattern, _ in detector.patterns
    ]
    umlauts = [*WORDS, "größer", "–", "„schön“", "für"]
    forty = chat(*(text(600 + n) for n in range(40)))
    rows = [
        *((f"one message, {size / 1000:g} KB", chat(text(size))) for size in SIZES),
        ("one message, 24 KB, German", chat(text(24_000, umlauts))),
        ("40 messages, 24 KB", forty),
    ]
    print(f"{platform.machine()}, Python {platform.python_version()}; {len(stdlib)} patterns\n")
    print("| | all of it, µs | of it RE2's set | stdlib `re`, search only |")
    print("|---|---|---|---|")
    for name, document in rows:
        found = detectors.scan(document)
        assert not found.names, found
        said = read(document)
        whole = joined(said)
        data = detectors._scannable(whole)
        ours = microseconds(lambda d=document: detectors.scan(d))
        table = microseconds(lambda d=data: detectors.table.Match(d))
        theirs = microseconds(lambda w=whole: [p.search(w) for p in stdlib])
        print(f"| {name} | {ours:.1f} | {table:.1f} | {theirs:.1f} |")
    imported = subprocess.run(
        [sys.executable, "-c", "import time; s = time.perf_counter(); import re2; print((time.perf_counter() - s) * 1000)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    print(f"\nBuilding: {built_ms:.0f} ms; `import re2` alone, in a new process: ", end="")
    print(f"{float(imported.stdout):.0f} ms.")


if __name__ == "__main__":
    main()
