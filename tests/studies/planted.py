"""Small studies, and runs with losses that are planted instead of trained."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from fromscratch.config.loading import load_run_file
from fromscratch.runs.states import Event, RunState
from fromscratch.studies import verbs
from fromscratch.studies.jobs import Job, StudyFolder
from tests.small import write_run_file

VOCABULARY = 257
"""Of the small run's store."""
NO_DROPOUT = {"no-dropout": {"model": {"dropout": 0.0}}}
CHANGES = {**NO_DROPOUT, "clipping": {"train": {"clip": {"kind": "norm", "max_norm": 0.1}}}}


def write_study(folder: Path, **keys: object) -> Path:
    """A study of the small run."""
    write_run_file(folder, "baseline", train={"evaluate_every": 4})
    values = {"baseline": "baseline.toml", "seeds": [1, 2], "control_seeds": 2, "interventions": CHANGES, **keys}
    (folder / "study.toml").write_text(tomli_w.dumps(values))
    return folder / "study.toml"


def open_folder(file: Path) -> StudyFolder:
    """The study and its runs in ``runs`` beside it."""
    return verbs.open_folder(file, file.parent / "runs")


def finish(
    folder: StudyFolder,
    losses: Mapping[str, Sequence[float | None]],
    *,
    num_steps: int = 20,
    seconds: float | None = None,
    dollars_per_hour: float | None = None,
) -> None:
    """Writes runs that ended with these losses, by seed; None is a run that has not begun, NaN one that diverged.

    Each took ``seconds``, if given.
    """
    for arm in folder.study.all_arms:
        for seed, loss in zip(arm.seeds, losses.get(arm.name, ()), strict=False):
            if loss is not None:
                job = folder.job(arm, seed)
                finish_one(folder, job, loss, num_steps=num_steps)
                if seconds is not None:
                    _write_cost(job, num_steps, seconds, dollars_per_hour)


def finish_one(folder: StudyFolder, job: Job, loss: float, *, num_steps: int = 20) -> None:
    """Writes one run that ended, with the config that training would have resolved."""
    job.run.create()
    for step in (0, num_steps // 2, num_steps):
        job.run.log_event(Event.EVALUATION, step=step, loss=loss + (num_steps - step) / num_steps)
    state = RunState.DIVERGED if math.isnan(loss) else RunState.DONE
    job.run.write_status(state, step=num_steps, num_steps=num_steps)
    overrides = [*job.arm.overrides, f"train.seed={job.seed}", f"model.vocab_size={VOCABULARY}"]
    resolved = load_run_file(folder.study.baseline, overrides).config.to_plain()
    resolved["model"].pop("preset", None)
    job.run.write_config(resolved)


def _write_cost(job: Job, num_steps: int, seconds: float, dollars_per_hour: float | None) -> None:
    session = {
        **{"began_at": "2026-01-01T00:00:00+00:00", "device_name": "cpu", "devices": 1},
        **{"first_step": 0, "last_step": num_steps, "seconds": {"training": seconds}},
        "dollars_per_hour": dollars_per_hour,
    }
    job.run.cost.write_text(json.dumps({"sessions": [session]}))
