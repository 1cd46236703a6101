"""The runs of a study as numbers: final losses by arm and seed, and verdicts at this moment."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from fromscratch.errors import DataError, UsageError
from fromscratch.files import read_json_object
from fromscratch.runs.directory import CLASSIFICATION
from fromscratch.runs.overview import lowest_evaluation
from fromscratch.runs.records import read_outcomes, read_records, to_float
from fromscratch.runs.states import Event, RunState
from fromscratch.studies.definition import CONTROL, Study
from fromscratch.studies.effects import effect_of_share, share_of_training
from fromscratch.studies.jobs import Job, StudyFolder, held_out_by_share, held_out_losses, is_lost
from fromscratch.studies.noise import Spread
from fromscratch.studies.verdicts import ArmResult, StudyResult, judge_study

DEFAULT_SHARE = 0.01
"""Share of the baseline's training that the smallest effect of interest is worth, where the study names none."""
MIN_P = 1e-6
"""Smaller ones are not told apart."""
Place = TypeVar("Place", int, float)
Losses = dict[str, dict[int, float | None]]


@dataclass(frozen=True)
class Judgement:
    """The verdicts of a study at one moment."""

    result: StudyResult
    losses: Losses
    margin: float
    """The smallest effect of interest, in the unit of the measure."""
    curve: list[tuple[int, float]]
    """Held-out loss of the baseline by step, mean over its runs; empty for tuned models, whose effects are in no such
    loss."""

    def share(self, arm: str) -> float | None:
        """The arm's effect as a share of the baseline's training; None where it has none, or is beyond the curve."""
        effect = next(one.effect for one in self.result.arms if one.arm == arm)
        if effect is None or len(self.curve) < 2:
            return None
        return share_of_training(effect, *zip(*self.curve, strict=True))

    def differences(self, arm: ArmResult) -> list[float]:
        """Each run's figure minus the baseline's: of its seed where the verdict compares pairs, else their mean."""
        base = self.result.control.losses
        mean = fmean(base.values()) if base else 0.0
        return [loss - (base.get(seed, mean) if arm.paired else mean) for seed, loss in arm.runs.losses.items()]


def held_out_name(study: Study) -> str:
    """What ``validation_losses`` are measured on."""
    return "validation part" if study.measure.is_tuned else "validation slice"


def validation_losses(folder: StudyFolder) -> Losses:
    """Held-out result of every declared run: None where it has not ended, NaN where it diverged or was stopped.

    The final loss; of tuned models, the study's measure of the best checkpoint on the validation part.
    """
    stopped, study = folder.stopped_early(), folder.study
    return {
        arm.name: {seed: _result(folder.job(arm, seed), stopped, study) for seed in arm.seeds}
        for arm in folder.study.all_arms
    }


def judge(folder: StudyFolder, losses: Losses, *, borrowed: Spread | None = None) -> Judgement:
    """Compares every arm with the baseline, on losses of the validation slice or of the test set.

    Raises:
        UsageError: the study names no smallest effect of interest, and no run of the baseline has a loss curve yet.
    """
    config, measure = folder.study.config, folder.study.measure
    curve = [] if measure.is_tuned else baseline_curve(folder)
    margin = config.smallest_effect
    if margin is None:
        if len(curve) < 2:
            raise UsageError(
                f"study {folder.study.name}: no run of the baseline has two evaluations yet, which tell what 1% of the "
                "training is worth; wait for one, or give smallest_effect in nats"
            )
        margin = effect_of_share(DEFAULT_SHARE, *zip(*curve, strict=True))
    result = judge_study(
        losses,
        CONTROL,
        margin=margin,
        design=config.design,
        alpha=config.alpha,
        borrowed=borrowed,
        measure=measure,
    )
    return Judgement(result, losses, margin, curve)


def baseline_curve(folder: StudyFolder) -> list[tuple[int, float]]:
    """Mean held-out loss by step of the baseline's runs that are done; of those under way, where none is done; a
    diverged run is in neither."""
    stopped = folder.stopped_early()
    jobs = [job for job in arm_jobs(folder, CONTROL) if not is_lost(job, stopped)]
    done = [job for job in jobs if job.state == RunState.DONE]
    return mean_curve([held_out_losses(job.run) for job in done or jobs])


def mean_curve(curves: list[dict[Place, float]]) -> list[tuple[Place, float]]:
    """Mean of curves over the steps, or shares, that they have in common; empty ones are left out."""
    given = [curve for curve in curves if curve]
    steps = set.intersection(*(set(curve) for curve in given)) if given else set[Place]()
    return [(step, fmean(curve[step] for curve in given)) for step in sorted(steps)]


@dataclass(frozen=True)
class ArmCurve:
    """Held-out loss of an arm minus the baseline's mean, by share of the training; its runs that count only."""

    arm: str
    lost: int
    """Runs that diverged or were stopped, which are left out."""
    shares: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    """Range of the seeds."""


def curves_by_arm(folder: StudyFolder) -> list[ArmCurve]:
    """The curves of all arms, the baseline first; empty where an arm has none in common with the baseline."""
    stopped, found = folder.stopped_early(), []
    base: dict[float, float] | None = None
    for arm in folder.study.all_arms:
        jobs = arm_jobs(folder, arm.name)
        counted = [job for job in jobs if not is_lost(job, stopped)]
        curves = [curve for job in counted if (curve := held_out_by_share(job.run))]
        mean = mean_curve(curves)
        base = dict(mean) if base is None else base
        shares = [share for share, _ in mean if share in base and share > 0]
        found.append(
            ArmCurve(
                arm.name,
                len(jobs) - len(counted),
                shares,
                [loss - base[share] for share, loss in mean if share in shares],
                [min(curve[share] for curve in curves) - base[share] for share in shares],
                [max(curve[share] for curve in curves) - base[share] for share in shares],
            )
        )
    return found


def evidence_by_round(folder: StudyFolder, judgement: Judgement) -> dict[str, list[tuple[int, float]]]:
    """1/p of each arm after each round of seeds that gave it a verdict: where it crosses 1/alpha, it is decided."""
    found: dict[str, list[tuple[int, float]]] = {arm.name: [] for arm in folder.study.arms}
    for number in range(1, max(len(arm.seeds) for arm in folder.study.arms) + 1):
        look = judge(folder, losses_after(judgement.losses, number), borrowed=judgement.result.borrowed)
        for one in look.result.arms:
            if one.evidence is not None:
                found[one.arm].append((number, 1 / max(one.evidence.p_different, MIN_P)))
    return found


def arm_jobs(folder: StudyFolder, arm: str) -> list[Job]:
    """The runs of an arm."""
    return [job for job in folder.jobs() if job.arm.name == arm]


def losses_after(losses: Losses, rounds: int) -> Losses:
    """The losses as they were when each arm had at most ``rounds`` runs."""
    return {
        arm: {seed: loss if place < rounds else None for place, (seed, loss) in enumerate(by_seed.items())}
        for arm, by_seed in losses.items()
    }


def outcomes_of(folder: StudyFolder, arm: str) -> dict[str, int]:
    """Steps of an arm by outcome, where it is not normal: clipped, not finite, spikes."""
    found: Counter[str] = Counter()
    for job in arm_jobs(folder, arm):
        for run in job.stages:
            found.update({name: len(steps) for name, steps in read_outcomes(run.metrics).items()})
    return {name: count for name, count in found.items() if count}


def sums_of_members(folder: StudyFolder, judgement: Judgement) -> Mapping[str, float]:
    """For each stack, the sum of the effects of its members, where all of them have one."""
    effects = {one.arm: one.effect for one in judgement.result.arms}
    sums = {}
    for arm in folder.study.arms:
        members = [effects[name] for name in arm.members]
        if members and all(effect is not None for effect in members):
            sums[arm.name] = math.fsum(effect for effect in members if effect is not None)
    return sums


def _result(job: Job, stopped_early: set[str], study: Study) -> float | None:
    if is_lost(job, stopped_early):
        return math.nan
    if job.state != RunState.DONE:
        return None
    if job.needs_report:
        return classifier_result(job, "validation", study)
    if study.measure.is_tuned:
        lowest, _ = lowest_evaluation(job.current, None)
        return math.nan if lowest is None else lowest
    return _final_loss(job)


def classifier_result(job: Job, part: str, study: Study) -> float:
    """Returns the study's measure of a tuned classifier on a part of its records.

    Raises:
        DataError: the report of the run lacks it.
    """
    path = job.current.path / CLASSIFICATION
    measures = read_json_object(path).get(part)
    value = to_float(measures.get(study.measure.name.replace(" ", "_")) if isinstance(measures, dict) else None)
    if value is None:
        raise DataError(
            f"{path}: has no {study.measure.name} of the {part} part; remove the file and run the study again, with "
            "tune.test_share above 0 for a test part"
        )
    return value


def _final_loss(job: Job) -> float:
    losses = held_out_losses(job.run)
    if not losses and not any(record.get("event") == Event.EVALUATION for record in read_records(job.run.events)):
        raise UsageError(
            f"run {job.run.path}: has measured no held-out loss, which studies compare; give the store held-out text, "
            "or [eval] a store that has some"
        )
    num_steps = job.run.read_status().num_steps
    return losses.get(num_steps or -1, math.nan)
