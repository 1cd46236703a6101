"""``fromscratch dashboard``."""

from pathlib import Path
from typing import Annotated

import typer

from fromscratch.cli.output import note
from fromscratch.errors import UsageError

LOCAL = ("127.0.0.1", "localhost", "::1")


def dashboard(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="Folder of runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but this machine's own needs the token that is printed.")
    ] = LOCAL[0],
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show runs and studies in a browser, and update the pages while runs are trained. Reads the folder only.

    On a rented machine, start it there and reach it through ssh: ssh -L 8000:localhost:8000 MACHINE

    Example: fromscratch dashboard runs --open
    """
    try:
        from fromscratch.dashboard.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "jinja2"):
            raise
        raise UsageError(
            f"fromscratch dashboard: the package {error.name} is not installed; pip install 'fromscratch[dashboard]'"
        ) from None

    def ready(address: str) -> None:
        if host not in LOCAL:
            note(
                f"warning: listening on {host}, so others in this network can reach the dashboard; only the address "
                "with the token below opens it, and the connection is not encrypted. An ssh tunnel is safer: "
                f"ssh -L {port}:localhost:{port} MACHINE"
            )
        note(f"the dashboard of {runs} is at {address} (Ctrl-C ends it)")
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    serve(runs, host=host, port=port, on_ready=ready)
