"""The page of one run: figures, charts, samples, events, config, checkpoints, cost, evaluations, commands."""

import csv
import io
import math
import shlex
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fromscratch.config.loading import run_config_or_none, values_by_key
from fromscratch.config.run import RunConfig, changed_values
from fromscratch.dashboard.charts import RUN_CHARTS
from fromscratch.dashboard.figures import figures_of
from fromscratch.dashboard.metrics import KNOWN, OTHER_KEYS, Metrics
from fromscratch.dashboard.run_data import Window, reader_of, window_of
from fromscratch.dashboard.site import Part, Site, address, html_response, json_response, live_address, to_json
from fromscratch.dashboard.stamps import bodies_of
from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.runs.costs import RunCost, cost_of
from fromscratch.runs.details import list_checkpoints
from fromscratch.runs.directory import CLASSIFICATION, STORES, RunDirectory
from fromscratch.runs.records import last_record, read_records, to_count, to_float
from fromscratch.runs.states import Event, RunState

MAX_EVENTS, MAX_SAMPLES, MAX_TEXT = 60, 6, 4_000
EVENT_KEYS_SHOWN_ELSEWHERE = ("event", "at", "step", "text")
ROWS_AT_ONCE = 5_000


def part(site: Site) -> Part:
    """The pages of runs, ``/runs/NAME``, and the data of their charts."""
    figures, reader, bodies = figures_of(site), reader_of(site), bodies_of(site)

    def read(name: str) -> dict[str, Any]:
        run = site.run(name)
        found = figures.of(run)
        if found.overview is None:
            raise HTTPException(404, f"run {name[:200]!r} {found.refusal}")
        return {"one": found, "charts": _charts(name, run), **_contents(run, found.overview.state)}

    async def show(request: Request) -> Response:
        name = request.path_params["name"]
        live = live_address(name)
        return html_response(
            await bodies.get(("run",), [name], lambda: site.render("run.html", live=live, **read(name)))
        )

    def chart_of(name: str, chart: str, window: Window, full: bool) -> dict[str, Any]:
        data, is_partial = reader.read(name, full=full)
        found = RUN_CHARTS[chart](data.within(*window))
        if data.metrics.skipped:
            found["notes"].append(f"{data.metrics.skipped:,} lines are no record of a step, or are repeated")
        return {**found, "partial": is_partial}

    async def chart(request: Request) -> Response:
        name, kind = request.path_params["name"], request.path_params["chart"]
        if kind not in RUN_CHARTS:
            raise HTTPException(404, f"there is no chart {kind[:80]!r}")
        window, full = (
            window_of(request),
            "full" in request.query_params or not await site.in_thread(reader.is_long, name),
        )
        return json_response(
            await bodies.get((kind, window, full), [name], lambda: to_json(chart_of(name, kind, window, full)))
        )

    async def confusion(request: Request) -> Response:
        run = await site.in_thread(site.run, request.path_params["name"])
        found = confusion_of(run)
        if found is None:
            raise HTTPException(404, "this run has no measured classifier")
        return json_response(found)

    async def metrics(request: Request) -> Response:
        data, _ = await site.in_thread(reader.read, request.path_params["name"])
        headers = {"Content-Disposition": 'attachment; filename="metrics.csv"'}
        return StreamingResponse(_as_csv(data.metrics), media_type="text/csv", headers=headers)

    return Part(
        (
            Route("/runs/{name:path}", show, methods=["GET"]),
            Route("/chart/confusion/{name:path}", confusion, methods=["GET"]),
            Route("/chart/{chart}/{name:path}", chart, methods=["GET"]),
            Route("/metrics/{name:path}", metrics, methods=["GET"]),
        )
    )


def _charts(name: str, run: RunDirectory) -> list[tuple[str, str, str]]:
    """Name, title and address of the charts of a run."""
    titles = {"loss": "Loss", "gradient-norm": "Gradient norm", "learning-rate": "Learning rate", "speed": "Speed"}
    last = last_record(run.metrics)
    if any(to_float(value) is not None for key, value in last.items() if key not in (*KNOWN, *OTHER_KEYS)):
        titles["auxiliary"] = "Auxiliary values"
    return [(chart, title, address(f"chart/{chart}", name)) for chart, title in titles.items()]


def _contents(run: RunDirectory, state: RunState) -> dict[str, Any]:
    config = run_config_or_none(run.config)
    events, samples, counts = _events(run)
    return {
        "changes": None if config is None else changed_values(config),
        "config": {} if config is None else values_by_key(config.to_plain()),
        "events": events,
        "event_counts": counts,
        "samples": samples,
        "checkpoints": list(list_checkpoints(run, checksums=False)),
        "cost": _cost(run),
        "machine": _object_or_none(run.machine) or {},
        "evaluations": {path.stem: _figures(path) for path in sorted(run.evaluations.glob("*.json"))[:50]},
        "confusion": confusion_of(run) is not None,
        "commands": commands(run, config, state),
    }


def _events(run: RunDirectory) -> tuple[list[dict[str, Any]], list[tuple[int | None, list[str]]], dict[str, int]]:
    """The last events, newest first; the last samples by step, newest first; and the number of each event."""
    recent: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
    samples: dict[int | None, list[str]] = {}
    counts: Counter[str] = Counter()
    for record in read_records(run.events):
        name, step = str(record.get("event"))[:80], to_count(record.get("step"))
        counts[name] += 1
        if name == Event.SAMPLE:
            texts = samples.setdefault(step, [])
            if (text := str(record.get("text"))[:MAX_TEXT]) not in texts:
                texts.append(text)
            continue
        details = {key: value for key, value in record.items() if key not in EVENT_KEYS_SHOWN_ELSEWHERE}
        recent.append({"name": name, "at": str(record.get("at") or "")[:40], "step": step, "details": details})
    newest = sorted(samples.items(), key=lambda item: item[0] or 0, reverse=True)[:MAX_SAMPLES]
    return list(reversed(recent)), newest, dict(counts)


def _cost(run: RunDirectory) -> RunCost | None:
    try:
        return cost_of(run) if run.cost.is_file() else None
    except (DataError, TypeError, ValueError, OverflowError):
        return None


def _object_or_none(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except DataError:
        return None


def _figures(path: Path) -> dict[str, Any]:
    """The single figures of an evaluation."""
    values = _object_or_none(path)
    if values is None:
        return {"problem": "this file cannot be read"}
    return {str(key): value for key, value in values.items() if not isinstance(value, dict | list)}


def confusion_of(run: RunDirectory) -> dict[str, Any] | None:
    """The confusion matrix of a classifier's test part, else of its validation part; None without one."""
    report = _object_or_none(run.path / CLASSIFICATION) or {}
    for name in ("test", "validation"):
        found, classes = report.get(name), report.get("classes")
        counts = found.get("confusion") if isinstance(found, dict) else None
        if not isinstance(counts, list) or not isinstance(classes, list) or len(counts) != len(classes):
            continue
        if all(isinstance(row, list) and len(row) == len(classes) and None not in map(to_count, row) for row in counts):
            return {"kind": "matrix", "classes": list(map(str, classes)), "counts": counts, "notes": [f"{name} part"]}
    return None


def commands(run: RunDirectory, config: RunConfig | None, state: RunState) -> list[tuple[str, str]]:
    """What one may do next with a run: a purpose, and the command for a shell."""
    path = shlex.quote(str(run.path))
    found = []
    if state not in (RunState.DONE, RunState.RUNNING) and config is not None and config.tune is None:
        stores = (_object_or_none(run.machine) or {}).get(STORES)
        sets = [f"{key}={value}" for key, value in stores.items()] if isinstance(stores, dict) else []
        words = ["train", str(run.config), "--name", run.name, "--runs-dir", str(run.path.parent)]
        words += [word for item in sets for word in ("--set", item)]
        found.append(("resume", shlex.join(["fromscratch", *words])))
    found += [
        ("look at everything", f"fromscratch runs show {path}"),
        ("check every byte", f"fromscratch runs verify {path}"),
        ("publish", f"fromscratch publish {path} --to FOLDER"),
        ("export the numbers", f"fromscratch runs export {path} --to csv --out FILE"),
    ]
    kind = config.tune.kind if config is not None and config.tune is not None else ""
    use = {
        "classify": ("classify", f"fromscratch classify {path} 'Some text'"),
        "instruct": ("chat", f"fromscratch chat {path}"),
    }
    found.insert(1, use.get(kind, ("generate", f"fromscratch generate {path} 'Every effort moves you'")))
    return found


def _as_csv(metrics: Metrics) -> Iterator[str]:
    """Yields one row per step; an unknown value is an empty cell."""
    names = list(metrics.values)
    columns = [metrics.step, *(metrics.values[name] for name in names)]
    yield ",".join(["step", *(name.replace(",", " ").replace("\n", " ") for name in names)]) + "\n"
    for begin in range(0, len(metrics.step), ROWS_AT_ONCE):
        text = io.StringIO()
        rows = zip(*(column[begin : begin + ROWS_AT_ONCE].tolist() for column in columns), strict=True)
        csv.writer(text, lineterminator="\n").writerows(
            [_cell(value) if isinstance(value, float) else value for value in row] for row in rows
        )
        yield text.getvalue()


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.9g}"
