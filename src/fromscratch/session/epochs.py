"""Runs that are thought of in epochs: how often they evaluate and save, and when they stop early."""

from fromscratch.config.run import RunConfig
from fromscratch.errors import UsageError


def once_per_epoch(config: RunConfig, steps_per_epoch: int, *, samples: bool = False) -> RunConfig:
    """Evaluates and saves at the end of every epoch, unless the file says more; with ``samples`` also draws texts."""
    train = config.train
    given = train.model_fields_set
    evaluate_every = train.evaluate_every if "evaluate_every" in given else steps_per_epoch
    every = {
        "evaluate_every": evaluate_every,
        "checkpoint_every": train.checkpoint_every if "checkpoint_every" in given else evaluate_every,
    }
    if samples and "sample_every" not in given:
        every["sample_every"] = steps_per_epoch
    return config.model_copy(update={"train": train.model_copy(update=every)})


def check_patience(config: RunConfig, where: str) -> None:
    """Raises UsageError unless a run that may stop early saves a checkpoint at every evaluation."""
    train, key = config.train, "tune.patience" if config.tune else "train.patience"
    if config.patience and (not train.evaluate_every or train.checkpoint_every != train.evaluate_every):
        raise UsageError(
            f"{where}: {key} = {config.patience} needs a checkpoint at every evaluation, but train.evaluate_every = "
            f"{train.evaluate_every} and train.checkpoint_every = {train.checkpoint_every}; make them the same, or "
            f"set {key} = 0"
        )
