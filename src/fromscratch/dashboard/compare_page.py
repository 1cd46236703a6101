"""Several runs over one another: ``/compare?run=A&run=B&by=tokens``."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fromscratch.dashboard.charts import AXES, COLUMNS, overlaid
from fromscratch.dashboard.figures import Figures, figures_of
from fromscratch.dashboard.live import MAX_NAMES
from fromscratch.dashboard.run_data import Window, reader_of, window_of
from fromscratch.dashboard.site import Part, Site, html_response, json_response, live_address, to_json
from fromscratch.dashboard.stamps import bodies_of
from fromscratch.errors import UsageError
from fromscratch.session.comparison import differing_values

MAX_RUNS = MAX_NAMES


def part(site: Site) -> Part:
    """The page that compares runs, and the data of its chart."""
    figures, reader, bodies = figures_of(site), reader_of(site), bodies_of(site)

    def read(names: list[str]) -> dict[str, Any]:
        found = [figures.of(site.run(name)) for name in names]
        try:
            differences = differing_values({name: site.run(name) for name in names})
            problem = ""
        except UsageError as error:
            differences, problem = {}, str(error)
        return {"runs": found, "differences": differences, "problem": problem, "others": _others(names)}

    async def show(request: Request) -> Response:
        names, by, column = _asked(request)
        query = request.url.query
        asked: dict[str, Any] = {"names": names, "by": by, "column": column, "source": f"/compare-chart?{query}"}
        asked |= {"live": live_address(*names), "axes": list(AXES), "columns": COLUMNS, "path": "/compare"}
        body = await bodies.get(
            ("compare", query), ["", *names], lambda: site.render("compare.html", **asked, **read(names))
        )
        return html_response(body)

    def _others(names: list[str]) -> list[Figures]:
        rest = (one for one in figures.all() if one.overview is not None and one.name not in names)
        return sorted(rest, key=lambda one: one.name)

    def chart_of(names: list[str], by: str, column: str, window: Window) -> dict[str, Any]:
        data = {name: reader.read(name)[0] for name in names}
        return overlaid({name: one.within(*window) for name, one in data.items()}, by, column)

    async def chart(request: Request) -> Response:
        names, by, column = _asked(request)
        window = window_of(request) if by == "step" else (None, None)
        key = ("compared", by, column, window)
        return json_response(await bodies.get(key, names, lambda: to_json(chart_of(names, by, column, window))))

    return Part(
        (
            Route("/compare", show, methods=["GET"]),
            Route("/compare-chart", chart, methods=["GET"]),
        ),
        entry=("/compare", "Compare"),
    )


def _asked(request: Request) -> tuple[list[str], str, str]:
    """Runs, axis and column that an address names. Raises HTTPException 400."""
    names = list(dict.fromkeys(request.query_params.getlist("run")))
    by, column = request.query_params.get("by", "step"), request.query_params.get("value", "loss")
    if by not in AXES or column not in COLUMNS:
        raise HTTPException(400, f"by = {by[:80]!r}, value = {column[:80]!r}: by is one of {', '.join(AXES)}")
    if len(names) > MAX_RUNS:
        raise HTTPException(400, f"more than {MAX_RUNS} runs cannot be compared at once")
    return names, by, column
