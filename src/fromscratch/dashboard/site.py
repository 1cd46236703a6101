"""What all pages share: the folder of runs, the templates, and a part of the site as one module adds it."""

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from fromscratch.dashboard import words
from fromscratch.files import to_strict_json
from fromscratch.runs.directory import RunDirectory

MAX_NAME_BYTES = 255
MAX_THREADS = 2
MAX_DEPTH = 2
"""Runs are in the folder of runs, or in the folder of their study."""
JUDGED_FILES = ("judge.json", "report.json", "replies.jsonl", "labels.jsonl")
"""What a results folder of ``fromscratch judge`` holds; the first makes it one."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """Some pages of the site. Templates are in ``templates/``, scripts and styles in ``static/``."""

    routes: tuple[BaseRoute, ...]
    entry: tuple[str, str] | None = None
    """Address and label in the navigation."""


class RefusedRunError(Exception):
    """A run that is not opened, because it would lead out of the folder of runs, or block."""


class Site:
    """The folder of runs, and how its content becomes pages."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.entries: list[tuple[str, str]] = []
        self.closing = asyncio.Event()
        """Set when the server ends: streams end too."""
        self._slots = asyncio.Semaphore(MAX_THREADS)
        self._templates = Environment(
            loader=PackageLoader("fromscratch.dashboard"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self._templates.filters |= words.FILTERS
        self._templates.globals |= {"address": address, "playground_address": playground_address}

    async def in_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Calls a function that reads files in a thread. There are few: each keeps memory of its own."""
        async with self._slots:
            return await run_in_threadpool(function, *arguments)

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """Renders a template as a page."""
        return html_response(self.render(template, path=request.url.path, **values), status=status)

    def render(self, template: str, **values: Any) -> bytes:
        """Renders a template. Every value is escaped; what is not Unicode is shown by its escapes."""
        known = {"path": "", "entries": self.entries, "folder": str(self.root)}
        text = self._templates.get_template(template).render(known | values)
        return text.encode("utf-8", "backslashreplace")

    def folders(self, parent: Path | None = None) -> list[Path]:
        """The folders in the folder of runs, or in one of a study, by name; none if it is gone."""
        try:
            with os.scandir(parent or self.root) as entries:
                found = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
        except OSError:
            return []
        return sorted(found, key=lambda path: path.name)

    def runs(self) -> Iterator[RunDirectory]:
        """All runs, those of studies included; also those that will be refused."""
        for path in self.folders():
            if (run := run_in(path)).exists():
                yield run
            elif self.is_inside(path):
                yield from self.runs_of_study(path)

    def runs_of_study(self, folder: Path) -> Iterator[RunDirectory]:
        """The runs in a folder below the root."""
        yield from (run for path in self.folders(folder) if (run := run_in(path)).exists())

    def judged(self) -> Iterator[Path]:
        """The results folders of judges, in the folder of runs or one level below."""
        for path in self.folders():
            if not self.is_inside(path):
                continue
            inner = () if run_in(path).exists() else self.folders(path)
            yield from (one for one in (path, *inner) if (one / JUDGED_FILES[0]).is_file())

    def run(self, name: str) -> RunDirectory:
        """Finds a run by its path below the root. Raises HTTPException 404, and RefusedRunError."""
        run = run_in(self.folder(name))
        if not run.exists():
            raise HTTPException(404, f"there is no run {name[:200]!r} (any more)")
        check_contents(run.path, self.root)
        return run

    def folder(self, name: str) -> Path:
        """Finds a folder below the root by its relative path. Raises HTTPException 404 if it leads elsewhere."""
        parts = name.split("/")
        try:
            if len(parts) <= MAX_DEPTH and all(_is_plain(part) for part in parts):
                path = self.root.joinpath(*parts)
                if path.is_dir() and self.is_inside(path):
                    return path
        except (OSError, ValueError, RuntimeError):
            pass
        raise HTTPException(404, f"there is no folder {name[:200]!r} (any more)")

    def is_inside(self, path: Path) -> bool:
        """Whether a path, links followed, is below the root."""
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError):
            return False

    def name_of(self, path: Path) -> str:
        """The relative path of a run or study, which its address has."""
        return path.relative_to(self.root).as_posix()


@lru_cache(4_096)
def run_in(folder: Path) -> RunDirectory:
    """The paths of a run, which take a while to put together; reads nothing."""
    return RunDirectory(folder)


def check_contents(folder: Path, root: Path) -> None:
    """Raises RefusedRunError if a folder holds a link out of the root, or a file that is no regular one."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                mode = path.lstat().st_mode
                is_link = stat.S_ISLNK(mode)
                if is_link and not path.resolve().is_relative_to(root):
                    raise RefusedRunError(f"{path.relative_to(folder)} is a link out of the folder of runs")
                if not (is_link or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise RefusedRunError(f"{path.relative_to(folder)} is neither a file nor a folder")
            except (OSError, RuntimeError):
                continue  # it has just been deleted


def address(kind: str, name: str) -> str:
    """The address of a page of a run or study, such as ``/runs/study/arm-seed-1``."""
    return f"/{kind}/{quote(name, safe='/', errors='surrogateescape')}"


def playground_address(name: str) -> str:
    """The address of the playground with a run as its model; the page itself percent-encodes names of models."""
    return "/playground?model-a=" + quote(quote(name, safe="/", errors="surrogateescape"), safe="/")


def live_address(*names: str) -> str:
    """The address of the stream of changes of runs and studies."""
    return "/live?" + "&".join(f"of={quote(name, safe='', errors='surrogateescape')}" for name in names)


def html_response(body: bytes, *, status: int = 200) -> Response:
    """A page that has been rendered."""
    return Response(body, status, media_type="text/html; charset=utf-8")


def json_response(value: Any, *, status: int = 200) -> Response:
    """A value as JSON; bytes are JSON already."""
    return Response(value if isinstance(value, bytes) else to_json(value), status, media_type="application/json")


def to_json(value: Any) -> bytes:
    """Strict JSON that is harmless inside HTML too."""
    return to_strict_json(value).replace("<", "\\u003c").encode()


def _is_plain(part: str) -> bool:
    return bool(part) and not part.startswith(".") and "\0" not in part and len(os.fsencode(part)) <= MAX_NAME_BYTES
