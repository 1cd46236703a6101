"""``fromscratch study fit``: curves through the results of several settings."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fromscratch.cli.options import DeviceOption, JsonFlag, PictureOption, QuietFlag, RunsDir
from fromscratch.cli.output import note, print_columns, print_json
from fromscratch.errors import UsageError

if TYPE_CHECKING:
    from fromscratch.studies.fit_data import Results
    from fromscratch.studies.fits import Fit, Prediction

app = typer.Typer(no_args_is_help=True, help="Fit a curve: memory, best batch, scaling with tokens and size, noise.")

LossSources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="Runs, study files, or CSV files with named columns.")
]
At = Annotated[
    list[str] | None,
    typer.Option("--at", metavar="NAME=VALUE[,...]", help="Also say what the curve predicts there; repeatable."),
]


@app.command(name="memory")
def memory(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Files that 'fromscratch fit --json' or 'bench --json' printed, or CSV: micro_batch, memory_bytes.",
        ),
    ],
    at: At = None,
    picture: PictureOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a line to peak memory against micro-batch: a fixed part, and bytes for each sequence.

    Example: fromscratch study fit memory bench.json --at micro_batch=48
    """
    from fromscratch.studies.fit_data import read_results
    from fromscratch.studies.fits import fit_line

    results = read_results("memory", sources, Path("runs"))
    columns = results.columns
    fit = fit_line(columns["micro_batch"], columns["memory_bytes"], x_name="micro_batch", y_name="memory_bytes")
    _report(fit, results, at, picture, as_json=as_json, is_linear=True)


@app.command(name="batch")
def batch(
    sources: LossSources,
    runs_dir: RunsDir = Path("runs"),
    at: At = None,
    picture: PictureOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a parabola to the loss against the log of the global batch: the best batch, with its interval.

    A CSV file has the columns batch, loss. Of a study, the arms count that change nothing but train.global_batch.

    Example: fromscratch study fit batch studies/gpt2-small/interventions.toml --picture batch.png
    """
    from fromscratch.studies.fit_data import read_results
    from fromscratch.studies.fits import fit_best_batch

    results = read_results("batch", sources, runs_dir)
    fit = fit_best_batch(results.columns["batch"], results.columns["loss"])
    _report(fit, results, at, picture, as_json=as_json)


@app.command(name="scaling")
def scaling(
    sources: LossSources,
    runs_dir: RunsDir = Path("runs"),
    at: At = None,
    picture: PictureOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a power law to the loss against tokens, parameters, or both (Hoffmann et al. 2022, section 3.3).

    A CSV file has the columns loss, and tokens, parameters or both. Of a study, the arms count that change nothing but
    data.tokens and the size of the model.

    Example: fromscratch study fit scaling small medium large --at tokens=3.3e9,parameters=163e6
    """
    from fromscratch.studies.fit_data import read_results
    from fromscratch.studies.fits import fit_power_law

    results = read_results("scaling", sources, runs_dir)
    columns = {name: column for name, column in results.columns.items() if name != "loss"}
    _report(fit_power_law(results.columns["loss"], **columns), results, at, picture, as_json=as_json)


@app.command(name="noise")
def noise(
    source: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, RUN@step-N, or a CSV file: batch, squared_norm.")
    ],
    runs_dir: RunsDir = Path("runs"),
    store: Annotated[str | None, typer.Option(help="Token store to measure on; by default the run's.")] = None,
    split: Annotated[str, typer.Option(help="Split of the store.")] = "train",
    small: Annotated[int, typer.Option(min=1, help="Sequences of a small batch.")] = 2,
    large: Annotated[int, typer.Option(min=2, help="Sequences of a large batch.")] = 64,
    repeats: Annotated[int, typer.Option(min=2, help="Large batches; there are four times as many small ones.")] = 8,
    seed: Annotated[int, typer.Option(help="Decides which sequences are drawn.")] = 0,
    device: DeviceOption = None,
    at: At = None,
    picture: PictureOption = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure the noise of a model's gradient, and the critical batch, in sequences (McCandlish et al. 2018).

    Batches far above the critical one save few steps, batches far below it save little data. It grows during training:
    measure several checkpoints.

    Example: fromscratch study fit noise baseline@step-1000 --large 128
    """
    from fromscratch.studies.fit_data import Results, read_results
    from fromscratch.studies.fits import fit_critical_batch

    if source.endswith(".csv"):
        results = read_results("noise", [source], runs_dir)
    else:
        from fromscratch.evaluation.gradient_noise import squared_gradient_norms
        from fromscratch.formats.model_sources import open_model
        from fromscratch.formats.stores import held_out_store_of, open_named_store
        from fromscratch.machine.hardware import find_hardware

        loaded = open_model(source, find_hardware(device), runs_dir=runs_dir)
        opened = open_named_store(store or held_out_store_of(loaded))
        norms = squared_gradient_norms(
            loaded.model,
            opened.split(split),
            small=small,
            large=large,
            repeats=repeats,
            seed=seed,
            on_batch=lambda line: note(line, quiet=quiet),
        )
        results = Results({"batch": [], "squared_norm": []})
        for number, (size, norm) in enumerate(norms, start=1):
            results.add(f"batch {number}", {"batch": size, "squared_norm": norm})
    fit = fit_critical_batch(results.columns["batch"], results.columns["squared_norm"])
    _report(fit, results, at, picture, as_json=as_json)


def _report(
    fit: "Fit",
    results: "Results",
    at: list[str] | None,
    picture: Path | None,
    *,
    as_json: bool,
    is_linear: bool = False,
) -> None:
    """Prints a fit with its data, and draws it."""
    predictions = [(place, fit.predict(**place)) for place in map(_place, at or [])]
    warnings = [*results.notes, *fit.warnings(), *(found.warning for _, found in predictions if found.warning)]
    if picture is not None:
        from fromscratch.runs.charts import write_picture
        from fromscratch.studies.fit_pictures import draw_fit

        write_picture(picture, draw_fit(fit, is_linear=is_linear))
    rows = [
        {"source": label, **dict(zip(fit.data, place, strict=True)), fit.y_name: value}
        for label, place, value in zip(results.labels, zip(*fit.data.values(), strict=True), fit.observed, strict=True)
    ]
    if as_json:
        print_json(
            {
                "formula": fit.formula,
                "parameters": {name: asdict(one) for name, one in fit.parameters.items()},
                "residual_deviation": fit.residual_deviation,
                "data": rows,
                "predictions": [{"at": place, **asdict(found)} for place, found in predictions],
                "warnings": warnings,
            }
        )
        return
    _print(fit, rows, predictions)
    for warning in warnings:
        note(f"warning: {warning}")
    if picture is None:
        note("--picture FILE draws the curve")


def _print(fit: "Fit", rows: list[dict[str, object]], predictions: "list[tuple[dict[str, float], Prediction]]") -> None:
    print(f"{fit.formula}\n")
    print_columns(
        ("parameter", "value", "95% interval"),
        [(name, f"{one.value:.5g}", f"{one.low:.5g} to {one.high:.5g}") for name, one in fit.parameters.items()],
    )
    print(f"\nstandard deviation around the curve  {fit.residual_deviation:.4g}\n")
    curve = [float(fit.curve(**{name: row[name] for name in fit.data})) for row in rows]
    print_columns(
        (*rows[0], "curve"),
        [
            (str(row["source"]), *(f"{row[name]:,.6g}" for name in (*fit.data, fit.y_name)), f"{value:,.6g}")
            for row, value in zip(rows, curve, strict=True)
        ],
    )
    for place, found in predictions:
        at = ", ".join(f"{name} = {value:g}" for name, value in place.items())
        print(f"\nat {at}: {fit.y_name} = {found.value:,.6g}")


def _place(text: str) -> dict[str, float]:
    """Parses ``tokens=3e9,parameters=1e8``. Raises UsageError."""
    place = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            place[name.strip()] = float(value)
        except ValueError:
            raise UsageError(f"--at {text}: write NAME=NUMBER, separated by commas") from None
    return place
