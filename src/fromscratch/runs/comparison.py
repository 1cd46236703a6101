"""Key figures of several runs side by side. Reads only."""

from collections import Counter
from dataclasses import dataclass

from fromscratch.runs.costs import cost_of
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.overview import overview
from fromscratch.runs.records import read_records, to_float
from fromscratch.runs.states import RunState

LAST_SHARE = 0.02  # of the steps, for the final training loss


@dataclass(frozen=True)
class ComparedRun:
    """One row of the comparison; None means unknown."""

    label: str
    path: str
    state: RunState
    step: int | None
    num_steps: int | None
    tokens: int | None
    final_loss: float | None
    """Mean training loss of the last fiftieth of the recorded steps."""
    best_loss: float | None
    best_step: int | None
    tokens_per_second: float | None
    """In training steps, over all sessions."""
    total_seconds: float
    dollars: float | None


def labels_of(runs: list[RunDirectory]) -> dict[str, RunDirectory]:
    """Returns the runs by name, or by path where several have the same name; a run given twice appears once."""
    unique = {run.path.resolve(): run for run in runs}.values()
    names = Counter(run.name for run in unique)
    return {run.name if names[run.name] == 1 else str(run.path): run for run in unique}


def compare_run(label: str, run: RunDirectory) -> ComparedRun:
    """Reads the key figures of one run. Raises DataError if its ``cost.json`` is damaged."""
    one, cost = overview(run), cost_of(run)
    losses = [loss for record in read_records(run.metrics) if (loss := to_float(record.get("loss"))) is not None]
    last = losses[-max(1, int(LAST_SHARE * len(losses))) :]
    training = cost.seconds["training"]
    trained = sum(session.last_step - session.first_step for session in cost.sessions)
    tokens_per_step = cost.tokens / one.step if cost.tokens and one.step else None
    steps = trained if cost.is_complete else one.step or 0
    return ComparedRun(
        label=label,
        path=one.path,
        state=one.state,
        step=one.step,
        num_steps=one.num_steps,
        tokens=cost.tokens,
        final_loss=sum(last) / len(last) if last else None,
        best_loss=one.best_loss,
        best_step=one.best_step,
        tokens_per_second=steps * tokens_per_step / training if tokens_per_step and training else None,
        total_seconds=cost.total_seconds,
        dollars=cost.dollars,
    )
