"""Tasks of EleutherAI's lm-evaluation-harness, on a published model folder. Needs the extra ``eval``."""

from pathlib import Path
from typing import Any

from fromscratch.errors import UsageError


def run_harness(
    folder: Path,
    tasks: list[str],
    *,
    device: str,
    include: Path | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, dict[str, Any]]:
    """Returns the metrics of every task.

    Args:
        include: a folder of further task files (YAML).
        limit: examples per task; None is all.

    Raises:
        UsageError: the extra is not installed, or a task is unknown.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UsageError("eval harness: needs lm-eval; install it with: pip install 'fromscratch[eval]'") from None
    if include is not None and not include.is_dir():
        raise UsageError(f"--include {include}: no such folder")
    manager = TaskManager(include_path=None if include is None else str(include))
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UsageError(f"--tasks {','.join(unknown)}: not known to lm-eval; add task files with --include FOLDER")
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "trust_remote_code": True, "dtype": "float32"},
        tasks=list(tasks),
        task_manager=manager,
        device=device,
        batch_size=batch,
        limit=limit,
        bootstrap_iters=1_000,
    )
    return {task: {k: v for k, v in metrics.items() if k != "alias"} for task, metrics in found["results"].items()}
