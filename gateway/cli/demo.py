"""`weighbridge demo`: the whole gateway on this machine, with real traffic, in under a minute."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Engine(StrEnum):
    """What plays the self-hosted part."""

    AUTO = "auto"
    VLLM = "vllm"
    OLLAMA = "ollama"
    LLAMA_CPP = "llama.cpp"
    SIMULATED = "simulated"


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the tables.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A third of the requests.")] = False,
    engine: Annotated[
        Engine,
        typer.Option(
            help="The self-hosted engine; auto: a vLLM on port 8000, else an Ollama on 11434, "
            "else a small model on llama.cpp."
        ),
    ] = Engine.AUTO,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ignore vendors' keys: nothing leaves this machine.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Port for apps [4000, or a free one if that is taken].")
    ] = None,
    home: Annotated[Path, typer.Option(help="Folder of the demo's instance.")] = Path(
        ".weighbridge/demo"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON; implies --once.")
    ] = False,
) -> None:
    """Start the gateway with three backends, send it a mixed workload, show where it went and why.

    The self-hosted backend is a real small model on this machine. A closed API and a managed host
    are real where their keys are set (OPENAI_API_KEY, FIREWORKS_API_KEY, TOGETHER_API_KEY,
    BASETEN_API_KEY), which costs well under a cent; else scripted stand-ins, labelled simulated.
    Afterwards it serves until Ctrl-C. Exit status 1 if a promise was broken on the way.

    Example: weighbridge demo --once
    """
    from gateway.demo.run import Options, run

    raise typer.Exit(
        run(
            Options(
                home=home,
                port=port,
                engine=engine.value,
                offline=offline,
                quick=quick,
                once=once or as_json,
                as_json=as_json,
            )
        )
    )
