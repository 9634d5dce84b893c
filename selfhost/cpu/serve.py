#!/usr/bin/env python3
"""Serve a model with vLLM on CPU, on loopback.

Owns: the flags and environment with which vLLM is quick to start, small and safe on a few CPU
cores. The process becomes vLLM (exec), so its id, signals and exit code are vLLM's own. Standard
library only.
Must not know: the gateway. Arguments after `--` go to vLLM as they are, last, so they win.

Until it is ready the port refuses connections, for 30 to 60 seconds; then `/health` answers 200.
Send one chat request before you give it traffic: the first one takes seconds, most of all with
`--tp 2`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ENGINES = Path(__file__).resolve().parents[2] / ".engines"

FLAGS = {
    "--host": "127.0.0.1",
    "--dtype": "bfloat16",
    # A size in bytes. Without one vLLM takes nine tenths of the machine's memory for keys and
    # values.
    "--kv-cache-memory-bytes": "64M",
    # The CPU default of 128 makes prefix-cache hits too coarse to watch on short prompts.
    "--block-size": "32",
    "--tool-call-parser": "hermes",
    # A stream that is still running at SIGTERM gets this many seconds to end.
    "--shutdown-timeout": "10",
    "--sse-keep-alive-interval": "5",
}
SWITCHES = (
    # Saves the compiler and 20 s of start.
    "--enforce-eager",
    # A prompt prefilled in several chunks kills the CPU engine when its request has a `seed`.
    "--no-enable-chunked-prefill",
    "--enable-auto-tool-choice",
    "--enable-prompt-tokens-details",
    "--enable-server-load-tracking",
    "--enable-request-id-headers",
)
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # More spinning OpenMP threads than cores cost a factor of ten.
    "OMP_NUM_THREADS": "1",
    "VLLM_CACHE_ROOT": str(ENGINES / "cache"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks, one core each")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, default=ENGINES / "tiny-model", metavar="DIR")
    parser.add_argument("--name", default="tiny", help="the model name that requests use")
    parser.add_argument(
        "--context", type=int, default=2048, help="tokens of prompt and answer together"
    )
    parser.add_argument("--venv", type=Path, default=ENGINES / "vllm", help="as install.py made it")
    options, more = parser.parse_known_args()

    vllm = options.venv / "bin" / "vllm"
    for needed, recipe in ((vllm, "install.py"), (options.model / "config.json", "tiny_model.py")):
        if not needed.exists():
            sys.exit(f"{needed} is not there; run {Path(__file__).with_name(recipe)} first")
    flags, environment = parallelism(options.tp)
    flags |= FLAGS | {
        "--port": str(options.port),
        "--served-model-name": options.name,
        "--max-model-len": str(options.context),
    }
    command = [
        str(vllm),
        "serve",
        str(options.model),
        *(word for flag in flags.items() for word in flag),
    ]
    command += [*SWITCHES, *(word for word in more if word != "--")]
    os.execve(vllm, command, {**ENVIRONMENT, **environment, **os.environ})


def parallelism(ranks: int) -> tuple[dict[str, str], dict[str, str]]:
    """Flags and environment for `ranks` ranks."""
    if ranks == 1:
        # One process instead of two, and 20 s of imports less.
        return {"--distributed-executor-backend": "uni"}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < ranks:
        sys.exit(f"--tp {ranks} needs {ranks} cores, this process may use {len(cores)}")
    # By itself vLLM wants one NUMA node a rank; name the cores instead.
    bind = "|".join(str(core) for core in cores[:ranks])
    return {"--tensor-parallel-size": str(ranks)}, {"VLLM_CPU_OMP_THREADS_BIND": bind}


if __name__ == "__main__":
    main()
