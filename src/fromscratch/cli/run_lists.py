"""``fromscratch runs list``: runs as a table, with what differs between them, sorted and filtered."""

import operator
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fromscratch.cli.options import JsonFlag, RunsDir
from fromscratch.cli.output import local_time, note, print_columns, print_json, printable, show
from fromscratch.errors import UsageError
from fromscratch.files import readable_bytes

if TYPE_CHECKING:
    from fromscratch.config.run import RunConfig
    from fromscratch.runs.overview import Overview

MAX_KEY_COLUMNS = 6
SEED = "train.seed"
TRAINING_LOSS_MARK = " (training)"
CONDITION = re.compile(r"\s*([\w.]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Value = float | str | None


@dataclass(frozen=True)
class ListedRun:
    """A run and its config."""

    overview: "Overview"
    config: "RunConfig | None"
    """None if it cannot be read."""
    keys: dict[str, str | float | None]
    """Value of every key of the config, by its path, such as ``train.optimizer.learning_rate``."""

    @property
    def columns(self) -> dict[str, Value]:
        """The values that ``--sort`` and ``--filter`` take beside keys of the run file, by the head of their column."""
        one = self.overview
        return {
            "run": one.name,
            "state": one.state.value,
            "step": one.step,
            "done": one.progress,
            "loss": one.loss,
            "best": one.best_loss,
            "seed": self.keys.get(SEED),
            "size": one.size_bytes,
            "started": one.began_at,
            "updated": one.updated_at,
        }

    def value(self, name: str) -> Value:
        """Returns the value of a column or a key; None if it is unknown."""
        columns = self.columns
        return columns[name] if name in columns else self.keys.get(name)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON output."""
        from fromscratch.config.run import changed_values

        config = self.config
        return asdict(self.overview) | {
            "best_measure": config and config.best_measure,
            "seed": config and config.train.seed,
            "config": config and changed_values(config),
        }


def list_runs(
    runs_dir: RunsDir = Path("runs"),
    sort: Annotated[
        str, typer.Option(metavar="KEY", help="A column or a key of the run file; unknown values are last.")
    ] = "run",
    reverse: Annotated[bool, typer.Option("--reverse", help="Sort from high to low.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="CONDITION", help="KEY=VALUE, also with != < <= > >= and * in VALUE; repeat."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List all runs with their state, progress, losses, seed, and the keys of the run file that differ between them.

    A run that was killed is shown as interrupted; the same train command resumes it. The best loss is that of the
    best checkpoint, measured on at most [eval] tokens of held-out text; 'eval loss' takes the whole split, so its
    result differs.

    Example: fromscratch runs list --filter state=done --filter "best<4" --sort train.optimizer.learning_rate
    """
    from fromscratch.config.loading import run_config_or_none
    from fromscratch.runs.overview import overview, runs_in

    runs = [_listed(overview(run), run_config_or_none(run.config)) for run in runs_in(runs_dir)]
    shown = select(runs, sort=sort, reverse=reverse, conditions=filters or [])
    if as_json:
        print_json([one.to_dict() for one in shown])
    elif not shown:
        note(f"none of the {len(runs)} runs in {runs_dir} matches --filter" if runs else f"no runs in {runs_dir}")
    else:
        _print_runs(shown)


def select(runs: list[ListedRun], *, sort: str, reverse: bool, conditions: list[str]) -> list[ListedRun]:
    """Returns the runs that meet all conditions, sorted. Raises UsageError for an unknown key or a bad condition."""
    if not runs:
        return []
    for text in conditions:
        match = CONDITION.fullmatch(text)
        if not match:
            raise UsageError(f"--filter {text!r}: write it as KEY=VALUE, KEY!=VALUE or KEY<VALUE, such as state=done")
        _check_known(match[1], runs, option="--filter")
    _check_known(sort, runs, option="--sort")
    shown = [one for one in runs if all(_meets(one, text) for text in conditions)]
    known = sorted((one for one in shown if one.value(sort) is not None), key=_sort_key(sort), reverse=reverse)
    return known + [one for one in shown if one.value(sort) is None]


def differing_keys(runs: list[ListedRun]) -> list[str]:
    """Lists the keys whose values differ between runs, in the order of the run file; the seed has its own column."""
    readable = [one.keys for one in runs if one.keys]
    keys = dict.fromkeys(key for one in readable for key in one)
    return [key for key in keys if key != SEED and len({one.get(key) for one in readable}) > 1]


def cells_of(one: "Overview", *, best_mark: str = "") -> dict[str, str]:
    """Returns the figures of a run as text, by the head of their column."""
    best = "-" if one.best_loss is None else f"{one.best_loss:.4f} at {show(one.best_step)}{best_mark}"
    return {
        "run": printable(one.name),
        "state": one.state.value,
        "step": f"{_or_dash(one.step)} of {_or_dash(one.num_steps)}",
        "done": _or_dash(one.progress, ".0%"),
        "loss": _or_dash(one.loss, ".4f"),
        "best": best,
        "size": readable_bytes(one.size_bytes),
        "updated": local_time(one.updated_at),
    }


def _listed(one: "Overview", config: "RunConfig | None") -> ListedRun:
    return ListedRun(one, config, {} if config is None else dict(_flat(config.to_plain())))


def _flat(values: dict[str, Any], above: str = "") -> list[tuple[str, str | float]]:
    """Lists the values of nested tables by their key paths."""
    found: list[tuple[str, str | float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{above}{key}.")
        else:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            found.append((f"{above}{key}", value if is_number else _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_known(name: str, runs: list[ListedRun], *, option: str) -> None:
    from fromscratch.config.problems import suggestion

    known = list(dict.fromkeys([*runs[0].columns, *(key for one in runs for key in one.keys)]))
    if name not in known:
        columns = ", ".join(runs[0].columns)
        raise UsageError(
            f"{option} {name}: no such column ({columns}), and no key of the run files{suggestion(name, known)}"
        )


def _sort_key(name: str) -> Callable[[ListedRun], tuple[bool, Any]]:
    """Sorts numbers before texts."""

    def key(one: ListedRun) -> tuple[bool, Any]:
        value = one.value(name)
        return isinstance(value, str), value

    return key


def _meets(one: ListedRun, condition: str) -> bool:
    """Whether a run meets a condition; an unknown value meets only ``!=``."""
    match = CONDITION.fullmatch(condition)
    assert match is not None
    name, sign, wanted = match.groups()
    value = one.value(name)
    if value is None:
        return sign == "!="
    if isinstance(value, str):
        return ORDERS[sign](value, wanted) if sign in ORDERS else fnmatchcase(value, wanted) == (sign == "=")
    try:
        number = float(wanted)
    except ValueError:
        raise UsageError(f"--filter {condition!r}: {name} is a number, but {wanted!r} is not") from None
    return ORDERS[sign](value, number) if sign in ORDERS else (value == number) == (sign == "=")


def _print_runs(runs: list[ListedRun]) -> None:
    keys = differing_keys(runs)
    shown, left_out = keys[:MAX_KEY_COLUMNS], keys[MAX_KEY_COLUMNS:]
    rows = []
    for one in runs:
        is_training = one.config is not None and not one.config.train.evaluate_every
        cells = cells_of(one.overview, best_mark=TRAINING_LOSS_MARK if is_training else "")
        values = {_head(key, shown): printable(_cell(one.value(key))) for key in shown}
        last = {name: cells.pop(name) for name in ("size", "updated")}
        rows.append({**cells, "seed": _cell(one.value(SEED)), **values, **last})
    print_columns(list(rows[0]), [list(row.values()) for row in rows])
    note("best: lowest loss on at most [eval] tokens of held-out text; 'eval loss' takes the whole split")
    if left_out:
        note(f"{len(left_out)} more keys differ: {', '.join(left_out)}; --filter shows fewer runs, --json all values")


def _head(key: str, shown: list[str]) -> str:
    """Returns the key without its table, unless another column has the same."""
    short = key.partition(".")[2]
    return short if sum(other.partition(".")[2] == short for other in shown) == 1 else key


def _cell(value: Value) -> str:
    return "-" if value is None else _text(value)


def _or_dash(value: float | None, form: str = ",") -> str:
    return "-" if value is None else f"{value:{form}}"
