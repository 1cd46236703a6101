"""The run files of ``finetune instruct`` and ``finetune classify``, from a command line or a call in Python."""

from pathlib import Path
from typing import Any

from fromscratch.runs.directory import check_run_name

INSTRUCT, CLASSIFY = "finetune instruct", "finetune classify"
"""What messages call the two."""


def tuning_values(
    model: str | Path,
    data: str | Path,
    task: dict[str, Any],
    batches: dict[str, int | None],
    *,
    epochs: int,
    learning_rate: float | None,
) -> dict[str, Any]:
    """Returns the tables of a run file that tunes a model. Values that are None are left out.

    Args:
        task: the table ``[tune]``.
        batches: ``seed``, ``global_batch`` and ``evaluate_every`` of ``[train]``.
        learning_rate: the full rate; None, for classifiers, is that of ``with_suited_rate``.
    """
    optimizer = {"kind": "adamw", **_given({"learning_rate": learning_rate})}
    return {
        "data": {"store": str(data), "tokens": "all", "epochs": epochs},
        "train": {"start_from": {"model": str(model)}, "optimizer": optimizer, **_given(batches)},
        "tune": _given(task),
    }


def lora_setting(rank: int | None) -> dict[str, Any] | None:
    """Returns the value of ``tune.lora``: additions of that rank, multiplied by 2; None for none."""
    return {"rank": rank, "alpha": 2.0 * rank} if rank else None


def tuning_name(name: str | None, model: str | Path, task: str) -> str:
    """Returns the name of a tuning run, by default ``MODEL-TASK``. Raises UsageError for an invalid one."""
    return check_run_name(f"{Path(model).name.replace('@', '-')}-{task}" if name is None else name)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
