"""`weighbridge serve`: run the gateway, one worker in this process or several beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import socket

    from gateway.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port for apps [4000]; 0 takes a free one.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes [1].")] = None,
    policy: Annotated[str | None, typer.Option(help="Routing policy by name [balanced].")] = None,
    policies: Annotated[Path | None, typer.Option(help="Policy folder [HOME/policies].")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of this instance [.weighbridge].")
    ] = None,
    worker: Annotated[int | None, typer.Option(hidden=True)] = None,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve. Every option has a WEIGHBRIDGE_* variable; see the README for all of them.

    SIGHUP: policy files and secrets are read again. SIGTERM: an orderly end.

    Example: WEIGHBRIDGE_REDIS_URL=redis://localhost/0 weighbridge serve --workers 2
    """
    import logging
    import signal
    import socket

    from gateway.settings import Settings

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # waits until it can be heeded
    settings = Settings.load(
        host=host, port=port, workers=workers, policy=policy, policies=policies, home=home
    )
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for chatty in ("alembic", "uvicorn", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if worker is not None and fd is not None:
        run_worker(settings, socket.socket(fileno=fd), str(worker), parent=parent)
        return
    from gateway.supervisor import Supervisor, listen, self_command

    try:
        sock = listen(settings.host, settings.port)
    except OSError as error:
        typer.echo(
            f"weighbridge: cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "choose another with --port",
            err=True,
        )
        raise typer.Exit(2) from None
    prepare(settings)
    where = f"http://{settings.host}:{sock.getsockname()[1]}"
    if settings.workers == 1:
        run_worker(settings, sock, "0", announce=where)
        return
    command = [*self_command(), "serve"]
    for name, value in (("--policy", policy), ("--policies", policies), ("--home", home)):
        if value is not None:
            command += [name, str(value)]
    typer.echo(f"weighbridge: {settings.workers} workers on {where}")
    raise typer.Exit(Supervisor(command, settings.workers, sock).run())


def prepare(settings: Settings) -> None:
    """Once per start, before any worker: the schema, the policy, the first key, a clean tally.

    Raises StartupError, SettingsError.
    """
    import asyncio

    from gateway.app import open_store, settle_policy
    from gateway.ledger.keys import KeyStore, ensure_first_admin
    from gateway.webhooks import addresses

    addresses(settings.alert_webhook, settings.alert_secret)  # else each worker would end of it

    async def first_key() -> str | None:
        store = await open_store(settings)
        try:
            await settle_policy(settings, store)
            return await ensure_first_admin(
                KeyStore(store, pepper=settings.key_pepper, home=settings.home)
            )
        finally:
            await store.close()

    token = asyncio.run(first_key())
    if token is not None:
        typer.echo(
            f"weighbridge: first start. This admin key is shown once and stored nowhere:\n  {token}"
        )
    for stale in (settings.home / "metrics").glob("*.json"):
        stale.unlink(missing_ok=True)


def run_worker(
    settings: Settings,
    sock: socket.socket,
    name: str,
    *,
    announce: str | None = None,
    parent: int | None = None,
) -> None:
    """Build one worker and serve on `sock` until told to stop."""
    import asyncio
    import contextlib
    import signal
    import sys

    async def run() -> None:
        # A signal during start-up ends it in order too; the server takes over once it listens.
        starting = asyncio.current_task()
        assert starting is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, starting.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await _serve(settings, sock, name, announce, parent)

    factory = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


async def _serve(
    settings: Settings, sock: socket.socket, name: str, announce: str | None, parent: int | None
) -> None:
    import asyncio
    import gc
    import signal
    import sys

    import uvicorn

    from gateway.app import worker
    from gateway.server import Connection, Server
    from gateway.supervisor import watch_parent

    async with worker(settings, name=name) as built:
        Connection.head_bytes_max = settings.head_bytes_max
        Connection.head_s_max = settings.head_s_max
        config = uvicorn.Config(
            built.asgi(),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keepalive_s_max,
        )
        # What start-up made stays; collecting it again and again is work for nothing.
        gc.collect()
        gc.freeze()
        # A thread that checks policies holds requests up for so long at a time. Python's own 5 ms
        # let them wait 22 ms while 100 backends and 200 routes were loaded; this 5.
        sys.setswitchinterval(0.0005)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, built.files.reread)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        if parent is not None:
            built.tasks.start(watch_parent(parent), "supervisor watch")
        await Server(
            config,
            drain_lag_s=settings.drain_lag_s,
            drain_s_max=settings.drain_s_max,
            on_drain=built.drain,
            on_started=lambda: _announce(announce),
        ).serve(sockets=[sock])


def _announce(where: str | None) -> None:
    if where is not None:
        typer.echo(f"weighbridge: serving on {where}")
