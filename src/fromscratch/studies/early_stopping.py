"""The rule that stops a run without hope, so that its device is free for another one.

A run is stopped where, after the stated share of the steps, its held-out loss is higher than the baseline's mean at
the same share of its steps by more than the stated margin. The rule reads the validation slice only, and a run that it
stopped has no final loss: the report counts it, and never as a number.
"""

from statistics import fmean

from fromscratch.studies.definition import CONTROL
from fromscratch.studies.jobs import Job, StudyFolder, held_out_by_share, is_lost


def hopeless(folder: StudyFolder, job: Job) -> str:
    """Why the run has no hope; empty where it has, or where the study has no rule."""
    rule = folder.study.config.early_stop
    if rule is None or job.arm.name == CONTROL:
        return ""
    losses = held_out_by_share(job.run)
    if not losses:
        return ""
    share = max(losses)
    stopped, base = folder.stopped_early(), folder.study.control
    jobs = [one for seed in base.seeds if not is_lost(one := folder.job(base, seed), stopped)]
    control = [held_out_by_share(one.run) for one in jobs]
    there = [one[share] for one in control if share in one]
    if share < rule.after or not there:
        return ""
    excess = losses[share] - fmean(there)
    if excess <= rule.margin:
        return ""
    return (
        f"after {share:.0%} of its steps its held-out loss was {excess:.4f} above the baseline's (mean of "
        f"{len(there)}), more than {rule.margin}"
    )
