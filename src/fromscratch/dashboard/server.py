"""Serves the application with uvicorn, at a low priority so that training on the same machine has the processor."""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from fromscratch.dashboard.app import create_app
from fromscratch.dashboard.security import LOCAL_NAMES
from fromscratch.errors import UsageError
from fromscratch.runs.directory import RunDirectory

NICENESS = 5
MAX_CONNECTIONS = 512
MAX_HEADER_BYTES = 65_536


def serve(runs: Path, *, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serves the dashboard until the process is interrupted.

    Args:
        runs: the folder of runs.
        host: address to listen on; one that others can reach makes a token necessary.
        on_ready: gets the address of the first page, with the token, once connections are accepted.

    Raises:
        UsageError: no such folder, or the address cannot be used.
    """
    root = check_folder(runs)
    is_local = host in LOCAL_NAMES
    token = None if is_local else secrets.token_urlsafe(24)
    names = LOCAL_NAMES if is_local else (*LOCAL_NAMES, host, socket.gethostname(), socket.getfqdn())
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host if host != "0.0.0.0" else socket.gethostname()
    address = f"http://{shown}:{listener.getsockname()[1]}/"
    with suppress(OSError):
        os.nice(NICENESS)
    on_ready(address if token is None else f"{address}?token={token}")
    with suppress(KeyboardInterrupt):
        make_server(create_app(root, names=names, token=token)).run(sockets=[listener])


class Server(uvicorn.Server):
    """Ends the streams of open pages first: a stream that is cancelled instead leaves a traceback."""

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self._closing = closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends all connections."""
        self._closing.set()
        await super().shutdown(sockets)


def make_server(app: Starlette) -> Server:
    """Configures uvicorn for the application."""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,  # addresses may contain the token
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        http="h11",
        ws="none",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
    )
    return Server(config, app.state.closing)


def check_folder(runs: Path) -> Path:
    """Returns the real path of a folder of runs. Raises UsageError."""
    try:
        found = runs.expanduser().resolve()
        is_folder = found.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"RUNS {str(runs)[:120]!r}: cannot be used ({error})") from None
    if not is_folder:
        raise UsageError(f"RUNS {runs}: no such folder; train something, or name the folder of your runs")
    if RunDirectory(found).exists():
        raise UsageError(f"RUNS {runs}: is a run; name the folder that it is in, {found.parent}")
    return found


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); another program may use the port, "
            "give another --port, or 0 for a free one"
        ) from None
    return listener
