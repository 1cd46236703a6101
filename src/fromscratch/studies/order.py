"""The order in which the runs of a study are trained: a first comparison soon, then what decides most per dollar.

1. Seed by seed through all arms, until each has the runs that a comparison needs: one with a borrowed spread, else two.
2. Then always the run whose progress per cost is largest. The progress of a run is the information that it adds to
   each undecided comparison that it is a part of, as a share of the information that this comparison still needs if
   estimate and spread stay what they are. A run of the control is part of all comparisons. For k arms with n runs each
   it adds most until the control has sqrt(k) n runs, which is Dunnett's rule (``power.control_seeds``).
3. Arms that are decided come last, and those that a diverged run keeps from a verdict.

Runs under way count as if they had ended. A fixed design is judged once, when all runs have ended: seed by seed.
Equal states of the disk give equal orders, so several runners take the same runs first, and a claim admits one of them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fromscratch.studies.contrasts import harmonic
from fromscratch.studies.definition import CONTROL, Study
from fromscratch.studies.jobs import Job
from fromscratch.studies.verdicts import MAX_FURTHER_SEEDS, ArmResult, StudyResult


@dataclass(frozen=True)
class _Comparison:
    """An arm that is not decided yet."""

    arm: str
    paired: bool
    needed: float
    """Information that decides it."""


def train_order(
    study: Study,
    waiting: Iterable[Job],
    under_way: Iterable[Job],
    result: StudyResult | None,
    cost: Callable[[Job], float],
) -> list[Job]:
    """Returns the waiting runs in the order in which they are trained.

    Args:
        study: the study.
        waiting: runs that have not ended and that nobody trains, seed by seed.
        under_way: runs that are trained now.
        result: verdicts so far; None where there are none.
        cost: what remains of a run costs, in any unit.
    """
    left = list(waiting)
    if study.config.design == "fixed":
        return left
    plan = _Plan(study, result, under_way)
    ordered = []
    while left:
        # The first waiting run of each arm; ties keep the order seed by seed.
        first = {job.arm.name: job for job in reversed(left)}
        candidates = [job for job in left if first[job.arm.name] is job]
        waiting_by_arm = {(job.arm.name, job.seed): cost(job) for job in left}
        best = max(candidates, key=lambda job: plan.value(job, waiting_by_arm))
        ordered.append(best)
        left.remove(best)
        plan.add(best)
    return ordered


class _Plan:
    """What is counted so far, and what the comparisons still need."""

    def __init__(self, study: Study, result: StudyResult | None, under_way: Iterable[Job]) -> None:
        self._study = study
        self._min_runs = 1 if result is not None and result.borrowed is not None else 2
        results = {one.arm: one for one in result.arms} if result else {}
        # Seeds that have ended or are under way, those that diverged left out.
        self._counted: dict[str, set[int]] = {arm.name: set() for arm in study.all_arms}
        if result:
            self._counted[CONTROL] |= set(result.control.losses)
            for one in result.arms:
                self._counted[one.arm] |= set(one.runs.losses)
        control = len(self._counted[CONTROL])
        self._open = [
            _Comparison(arm.name, *_need(results.get(arm.name), control, set(arm.seeds) <= set(study.control.seeds)))
            for arm in study.arms
            if not _is_last(results.get(arm.name))
        ]
        for job in under_way:
            self.add(job)

    def add(self, job: Job) -> None:
        """Counts a run as ended."""
        self._counted[job.arm.name].add(job.seed)

    def value(self, job: Job, costs: dict[tuple[str, int], float]) -> tuple[float, float]:
        """What is largest for the best next run: the rounds of the first comparison, then progress per cost.

        A run of the control that pairs need is valued with the runs that make the pairs.
        """
        place, own = job.arm.seeds.index(job.seed), costs[job.arm.name, job.seed]
        if place < self._min_runs:
            return float(self._min_runs - place), 0.0
        progress = 0.0
        for one in self._open:
            if job.arm.name not in (CONTROL, one.arm):
                continue
            gain, partner = self._gain(one, job)
            if partner is not None and gain:
                own += costs.get((one.arm, partner), 0.0)
            progress += min(1.0, gain / one.needed)
        return 0.0, progress / own if own > 0 else progress

    def _gain(self, one: _Comparison, job: Job) -> tuple[float, int | None]:
        """The information that a run adds to a comparison, and the seed that the arm must train for it, if any."""
        control, arm = self._counted[CONTROL], self._counted[one.arm]
        is_control = job.arm.name == CONTROL
        if not one.paired:
            n, m = len(arm), len(control)
            more = _information(n, m + 1) if is_control else _information(n + 1, m)
            return more - _information(n, m), None
        if is_control:
            declared = next(known.seeds for known in self._study.arms if known.name == one.arm)
            return (0.5 if job.seed in declared else 0.0), None if job.seed in arm else job.seed
        return (0.5 if job.seed in control else 0.0), None


def _is_last(result: ArmResult | None) -> bool:
    return result is not None and (result.is_decided or bool(result.runs.diverged))


def _need(result: ArmResult | None, control: int, paired: bool) -> tuple[bool, float]:
    """Whether an arm is compared by seed, and the information that its comparison still needs."""
    if result is not None:
        paired = result.paired
    further = (result and result.seeds_to_decide) or MAX_FURTHER_SEEDS
    if paired:
        return True, further / 2
    own = len(result.runs.losses) if result else 0
    return False, _information(own + further, control + further) - _information(own, control)


def _information(own: int, control: int) -> float:
    return float(harmonic(np.array(float(own)), np.array(float(control))))
