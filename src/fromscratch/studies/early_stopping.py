"""The rule that stops a run without hope, so that its device is free for another one.

A run is stopped where, after the stated share of the steps, its held-out loss is higher than the baseline's mean at
the same step by more than the stated margin. The rule reads the validation slice only, and a run that it stopped has
no final loss: the report counts it, and never as a number.
"""

from statistics import fmean

from fromscratch.runs.overview import observed_status
from fromscratch.studies.definition import CONTROL
from fromscratch.studies.jobs import Job, StudyFolder, held_out_losses


def hopeless(folder: StudyFolder, job: Job) -> str:
    """Why the run has no hope; empty where it has, or where the study has no rule."""
    rule = folder.study.config.early_stop
    if rule is None or job.arm.name == CONTROL:
        return ""
    losses, num_steps = held_out_losses(job.run), observed_status(job.run).num_steps
    if not losses or not num_steps:
        return ""
    step = max(losses)
    control = [held_out_losses(folder.job(folder.study.control, seed).run) for seed in folder.study.control.seeds]
    there = [one[step] for one in control if step in one]
    if step < rule.after * num_steps or not there:
        return ""
    excess = losses[step] - fmean(there)
    if excess <= rule.margin:
        return ""
    return (
        f"at step {step:,} of {num_steps:,} its held-out loss was {excess:.4f} above the baseline's "
        f"(mean of {len(there)}), more than {rule.margin}"
    )
