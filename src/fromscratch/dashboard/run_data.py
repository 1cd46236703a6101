"""What charts need of a run, kept while the run does not change."""

from contextlib import suppress
from functools import cache

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fromscratch.config.loading import run_config_or_none
from fromscratch.dashboard.charts import RunData
from fromscratch.dashboard.metrics import MetricsCache
from fromscratch.dashboard.site import Site
from fromscratch.dashboard.stamps import Memory, stamp_of
from fromscratch.errors import DataError
from fromscratch.runs.costs import SessionCost, read_sessions
from fromscratch.runs.directory import RunDirectory
from fromscratch.studies.jobs import held_out_losses

Window = tuple[float | None, float | None]
"""First and last step; None means no limit."""
MAX_BYTES_AT_ONCE = 16 << 20
"""Of a file with more that is unread, a chart first shows some steps, and all of them when they are read."""


class RunDataReader:
    """Reads metrics, evaluations and prices of runs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._metrics = MetricsCache()
        self._others = Memory(500)

    def read(self, name: str, *, full: bool = True) -> tuple[RunData, bool]:
        """The data of a run, and whether they are only a part of its steps, which is quicker to read.

        Raises HTTPException and RefusedRunError as ``Site.run``.
        """
        is_partial = not full and self.is_long(name)
        run = self._site.run(name)
        metrics = self._metrics.preview(run) if is_partial else self._metrics.read(run)
        held_out, clip_norm, sessions = self._others.get(run.path, stamp_of(run), lambda: _others(run))
        return RunData(metrics, held_out, clip_norm, sessions), is_partial

    def is_long(self, name: str) -> bool:
        """Whether reading all steps of a run takes long, because they have not been read yet."""
        return self._metrics.unread_bytes(RunDirectory(self._site.folder(name))) > MAX_BYTES_AT_ONCE


def _others(run: RunDirectory) -> tuple[dict[int, float], float | None, tuple[SessionCost, ...]]:
    sessions: tuple[SessionCost, ...] = ()
    with suppress(DataError, TypeError):  # without them, charts by dollars are empty
        sessions = tuple(sorted(read_sessions(run), key=lambda one: one.first_step))
    config = run_config_or_none(run.config)
    clip = getattr(config.train.clip, "max_norm", None) if config else None
    return held_out_losses(run), clip, sessions


@cache
def reader_of(site: Site) -> RunDataReader:
    """The reader that all pages of a site share."""
    return RunDataReader(site)


def window_of(request: Request) -> Window:
    """The range of steps in ``first`` and ``last`` of an address. Raises HTTPException 400."""
    found = []
    for name in ("first", "last"):
        text = request.query_params.get(name)
        try:
            value = None if text is None else float(text)
        except ValueError:
            value = np.nan
        if value is not None and not np.isfinite(value):
            raise HTTPException(400, f"{name} = {text!r}: must be a number of steps")
        found.append(value)
    return found[0], found[1]
