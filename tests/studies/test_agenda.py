"""The order of runs, the limit of dollars, and what a study is predicted to take."""

import json
import math
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fromscratch.errors import UsageError
from fromscratch.processes.stopping import StopRequest
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.states import RunState
from fromscratch.studies.agenda import Agenda
from fromscratch.studies.definition import Arm, Study, StudyConfig
from fromscratch.studies.jobs import Job, StudyFolder
from fromscratch.studies.order import train_order
from fromscratch.studies.prices import Limit, Prices
from fromscratch.studies.runner import Outcome, run_study
from fromscratch.studies.verdicts import StudyResult, Verdict, judge_study
from tests.command import nothing_written, refused, run_command
from tests.small import write_run_file
from tests.studies.planted import finish, finish_one, open_folder, write_study

RECORDED = json.loads((Path(__file__).parent / "laptop_losses.json").read_text("utf-8"))
"""Final validation losses of the study in studies/laptop, by arm and seed."""
Losses = dict[str, dict[int, float | None]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty registry of noise, and no price."""
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FROMSCRATCH_DOLLARS_PER_HOUR", raising=False)
    return tmp_path / "home"


def study_of(seeds: dict[str, tuple[int, ...]], **config: Any) -> Study:
    control, *arms = (Arm(name, (), given) for name, given in seeds.items())
    settings = StudyConfig(baseline="baseline.toml", interventions={"any": {}}, **config)
    return Study("study", None, Path("baseline.toml"), settings, control, tuple(arms))


def jobs_of(study: Study) -> list[Job]:
    """All runs, seed by seed."""
    jobs = [
        Job(arm, seed, RunDirectory(Path("runs") / f"{arm.name}-{seed}"))
        for arm in study.all_arms
        for seed in arm.seeds
    ]
    return sorted(jobs, key=lambda job: job.arm.seeds.index(job.seed))


def walk(study: Study, losses: Losses, margin: float, *, adaptive: bool = True) -> list[tuple[str, StudyResult]]:
    """Reveals one loss after another; returns each run's arm and the verdicts after it."""
    left, result, seen = jobs_of(study), None, {arm: dict.fromkeys(by_seed) for arm, by_seed in losses.items()}
    steps = []
    while left:
        job = train_order(study, left, [], result, lambda _: 1.0)[0] if adaptive else left[0]
        left.remove(job)
        seen[job.arm.name][job.seed] = losses[job.arm.name][job.seed]
        result = judge_study(seen, "baseline", margin=margin)
        steps.append((job.arm.name, result))
    return steps


def recorded() -> tuple[Study, Losses]:
    losses: Losses = {arm: {int(seed): loss for seed, loss in by_seed.items()} for arm, by_seed in RECORDED.items()}
    return study_of({arm: tuple(by_seed) for arm, by_seed in losses.items()}), losses


def runs_until(steps: list[tuple[str, StudyResult]], decided: int) -> int:
    return next(n for n, (_, result) in enumerate(steps, 1) if sum(arm.is_decided for arm in result.arms) >= decided)


def test_recorded_losses_are_decided_with_fewer_runs_than_seed_by_seed() -> None:
    study, losses = recorded()
    adaptive, plain = walk(study, losses, 0.0011), walk(study, losses, 0.0011, adaptive=False)
    arms = [arm for arm, _ in adaptive]
    assert arms[:13] == list(losses) == arms[13:26], "first a comparison of every arm"
    assert runs_until(adaptive, 5) == 28 < runs_until(plain, 5) == 32
    decided = {arm.arm for arm in adaptive[25][1].arms if arm.is_decided}
    assert decided == {"tied-head", "gpt2-init", "batch-4", "all"} == set(arms[-4:]), "decided arms come last"
    assert adaptive == walk(study, losses, 0.0011), "the order is deterministic"
    final = [[arm.verdict for arm in steps[-1][1].arms] for steps in (adaptive, plain)]
    assert final[0] == final[1]


def test_the_control_keeps_the_square_root_of_the_arms_times_as_many_seeds() -> None:
    seeds = {"baseline": tuple(range(40)), **{f"arm-{n}": tuple(range(100 * n, 100 * n + 20)) for n in range(1, 5)}}
    order = train_order(study_of(seeds), jobs_of(study_of(seeds)), [], None, lambda _: 1.0)
    for count in (30, 60, 90):
        names = [job.arm.name for job in order[:count]]
        others = (count - names.count("baseline")) / 4
        assert names.count("baseline") == pytest.approx(2 * others, abs=2)


def test_the_cheaper_of_two_equal_runs_is_first_and_pairs_get_their_control() -> None:
    study = study_of({"baseline": (1, 2, 3, 4), "dear": (1, 2, 3, 4), "cheap": (1, 2, 3, 4)})
    left = [job for job in jobs_of(study) if job.seed > 2]
    cost = {"baseline": 1.0, "dear": 5.0, "cheap": 0.1}
    order = train_order(study, left, [], None, lambda job: cost[job.arm.name])
    assert [(job.arm.name, job.seed) for job in order[:2]] == [("baseline", 3), ("cheap", 3)]
    assert [job.arm.name for job in order].index("dear") == 4
    begun = [job for job in left if job.arm.name == "baseline"][:1]
    order = train_order(study, [job for job in left if job not in begun], begun, None, lambda job: cost[job.arm.name])
    assert order[0].name == "cheap-3", "a run that another process trains counts"


def test_an_arm_with_a_diverged_run_comes_after_those_that_can_be_decided() -> None:
    study = study_of({"baseline": (1, 2, 3), "wild": (11, 12, 13), "calm": (21, 22, 23)})
    losses: Losses = {
        "baseline": {1: 3.0, 2: 3.001, 3: None},
        "wild": {11: math.nan, 12: 2.9, 13: None},
        "calm": {21: 2.999, 22: 3.001, 23: None},
    }
    result = judge_study(losses, "baseline", margin=0.01)
    left = [job for job in jobs_of(study) if losses[job.arm.name][job.seed] is None]
    assert [job.arm.name for job in train_order(study, left, [], result, lambda _: 1.0)][-1] == "wild"


def test_a_fixed_design_stays_seed_by_seed() -> None:
    study, losses = recorded()
    fixed = replace(study, config=study.config.model_copy(update={"design": "fixed"}))
    jobs = jobs_of(study)
    assert train_order(fixed, jobs, [], walk(study, losses, 0.01)[-1][1], lambda _: 1.0) == jobs


def test_studies_without_effects_are_seldom_decided_in_this_order() -> None:
    """The order depends on losses; looked at after every run, false verdicts stay rare."""
    import numpy as np

    generator, false = np.random.default_rng(8), 0
    study = study_of({"baseline": tuple(range(9)), **{f"a{n}": tuple(range(100 * n, 100 * n + 5)) for n in (1, 2, 3)}})
    for _ in range(60):
        losses: Losses = {a.name: {s: float(generator.normal(3.4, 0.001)) for s in a.seeds} for a in study.all_arms}
        looks = [arm.verdict for _, result in walk(study, losses, 0.0015) for arm in result.arms]
        false += bool({Verdict.BETTER, Verdict.WORSE} & set(looks))
    assert false <= 3, f"{false} of 60"


def test_the_agenda_reads_the_disk(tmp_path: Path) -> None:
    folder = open_folder(write_study(tmp_path, control_seeds=3))
    agenda = Agenda(folder, Prices(folder, device="cpu"))
    names = [job.name for job in agenda.waiting()]
    assert names[:3] == ["baseline-seed-1", "no-dropout-seed-1", "clipping-seed-1"] and names[-1] == "baseline-seed-3"
    finish(folder, {"baseline": [2.0, None], "no-dropout": [None, math.nan], "clipping": [None, None]})
    names = [job.name for job in agenda.waiting()]
    assert names[:2] == ["no-dropout-seed-1", "clipping-seed-1"]
    assert "no-dropout-seed-2" not in names and "baseline-seed-1" not in names, "done or diverged: not trained again"
    with folder.claimed(folder.jobs()[1]) as mine:
        assert mine is not None and folder.is_claimed(folder.jobs()[1])
    assert not folder.is_claimed(folder.jobs()[1])


def test_two_processes_with_one_state_of_the_disk_agree(tmp_path: Path) -> None:
    file = write_study(tmp_path, seeds=[1, 2, 3, 4], control_seeds=6)
    finish(open_folder(file), {"baseline": [3.0, 3.001], "no-dropout": [2.9, 2.902], "clipping": [3.0, 3.002]})
    orders = [
        [job.name for job in Agenda(open_folder(file), Prices(open_folder(file), device="cpu")).waiting()]
        for _ in range(2)
    ]
    assert orders[0] == orders[1] and len(set(orders[0])) == 8


def test_without_a_measurement_or_a_price_nothing_is_invented(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    words = ("study", "run", file, "--runs-dir", tmp_path / "runs", "--device", "cpu")
    with nothing_written(tmp_path):
        said = run_command(*words, "--dry-run")
        found = json.loads(run_command(*words, "--dry-run", "--json").out)
    assert "6 of 6 runs, 120 steps, unknown hours, dollars: unknown" in said.out and "run fromscratch bench" in said.out
    assert found["total"] == {"runs": 6, "steps": 120, "hours": None, "dollars": None}
    refused(*words, "--limit-dollars", 5, code=2, says="no price is known; give --dollars-per-hour")
    refused(*words, "--limit-dollars", 5, "--dollars-per-hour", 2, code=2, says="takes is unknown; measure it with")
    refused(*words, "--json", code=2, says="--dry-run")


def test_the_total_is_predicted_from_finished_runs(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    finish(
        open_folder(file),
        {"baseline": [3.0, None], "no-dropout": [None, None], "clipping": [None, None]},
        seconds=3600.0,
        dollars_per_hour=2.0,
    )
    words = ("study", "run", file, "--runs-dir", tmp_path / "runs", "--device", "cpu", "--dry-run", "--json")
    found = json.loads(run_command(*words).out)
    assert found["total"] == {"runs": 5, "steps": 100, "hours": pytest.approx(5.0), "dollars": pytest.approx(10.0)}
    bases = {row["run"]: row["basis"] for row in found["runs"]}
    assert bases["baseline-seed-2"] == "its finished runs" and "by FLOPs" in bases["clipping-seed-1"]
    dearer = json.loads(run_command(*words, "--dollars-per-hour", 3).out)
    assert dearer["total"]["dollars"] == pytest.approx(15.0)


def test_an_assumed_speed_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from fromscratch.machine.hardware import Hardware

    gpu = Hardware(torch.device("cuda"), "NVIDIA A100-SXM4-80GB", 80_000_000_000)
    monkeypatch.setattr("fromscratch.studies.prices.find_hardware", lambda _: gpu)
    file = write_study(tmp_path)
    baseline = tmp_path / "baseline.toml"
    baseline.write_text(baseline.read_text().replace('precision = "fp32"', 'precision = "bf16"'))
    found = json.loads(run_command("study", "run", file, "--runs-dir", tmp_path / "runs", "--dry-run", "--json").out)
    assert {row["basis"] for row in found["runs"]} == {"assumed, MFU 40%"} and found["total"]["hours"] > 0


def test_totals_on_other_machines_add_up_what_plan_says(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    baseline = tmp_path / "baseline.toml"
    baseline.write_text(baseline.read_text().replace('precision = "fp32"', 'precision = "bf16"'))
    words = ("study", "run", file, "--runs-dir", tmp_path / "runs", "--device", "cpu")
    machines = ("--machine", "8xa100-40gb", "--machine", "home-rtx-3090")
    found = json.loads(run_command(*words, "--dry-run", *machines, "--json").out)
    planned = json.loads(run_command("plan", baseline, *machines, "--json").out)
    assert [one["machine"] for one in found["machines"]] == ["8xa100-40gb", "home-rtx-3090"]
    for total, one in zip(found["machines"], planned["machines"], strict=True):
        assert total["hours"] == pytest.approx(6 * one["hours"]), "six runs of equal size"
        assert total["dollars"] == pytest.approx([6 * dollars for dollars in one["dollars"]])
        assert "assumed" in total["basis"]
    said = run_command(*words, "--dry-run", *machines)
    assert "home-rtx-3090" in said.out and "on machine" in said.out
    refused(*words, *machines, code=2, says="--machine: is for --dry-run")
    refused(*words, "--dry-run", "--machine", "9xa100", code=2, says="9xa100")


def test_the_runs_of_another_study_are_not_judged(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    finish(open_folder(file), {"baseline": [3.0, 3.0], "no-dropout": [2.9, None], "clipping": [None, None]})
    run_command("study", "status", file, "--runs-dir", tmp_path / "runs", "--once")
    baseline = tmp_path / "baseline.toml"
    baseline.write_text(baseline.read_text().replace("tokens = 320", "tokens = 160"))
    for verb in (("run", "--dry-run"), ("status", "--once"), ("report", "--sealed")):
        words = ("study", verb[0], file, "--runs-dir", tmp_path / "runs", *verb[1:])
        refused(*words, code=2, says="trained with another config")
    refused("study", "status", file, "--runs-dir", tmp_path / "runs", code=2, says="eval.tokens: 320 -> 160")


def test_the_runs_of_a_baseline_with_a_preset_are_its_own(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    baseline = write_run_file(tmp_path, "baseline", model={"preset": "laptop-tiny"}, train={"evaluate_every": 4})
    finish(open_folder(file), {"baseline": [3.0, 3.0], "no-dropout": [2.9, 2.9], "clipping": [3.0, None]})
    words = ("study", "status", file, "--runs-dir", tmp_path / "runs", "--once")
    assert run_command(*words).code == 0
    baseline.write_text(baseline.read_text().replace("laptop-tiny", "modern-small"))
    refused(*words, code=2, says="trained with another config")


def test_no_run_begins_beyond_the_limit(tmp_path: Path) -> None:
    file = write_study(tmp_path)
    folder = open_folder(file)
    finish(
        folder,
        {"baseline": [3.0, 3.01], "no-dropout": [2.9, None], "clipping": [3.0, None]},
        seconds=3600.0,
        dollars_per_hour=2.0,
    )
    words = ("study", "run", file, "--runs-dir", tmp_path / "runs", "--device", "cpu", "--limit-dollars")
    said = run_command(*words, 9.5)
    assert said.code == 75 and "$8.00 are spent" in said.err and "about $2.00; no further run begins" in said.err
    prices = Prices(folder, device="cpu")
    waiting = Agenda(folder, prices).waiting()
    assert [job.state for job in waiting] == [None, None], "nothing was trained"
    enough = Agenda(folder, prices, Limit(11.0, prices))
    assert enough.refusal(waiting[0], []) == ""
    assert "runs under way will take about $2.00 more" in enough.refusal(waiting[1], [waiting[0]])


def test_a_run_under_way_costs_only_what_remains(tmp_path: Path) -> None:
    folder = open_folder(write_study(tmp_path))
    finish(
        folder,
        {"baseline": [3.0, 3.01], "no-dropout": [2.9, 2.9], "clipping": [3.0, 3.0]},
        seconds=3600.0,
        dollars_per_hour=2.0,
    )
    job = folder.job(folder.study.arms[0], 2)
    job.run.write_status(RunState.STOPPED, step=15, num_steps=20)
    prices = Prices(folder, device="cpu")
    (waiting,) = Agenda(folder, prices).waiting()
    assert "no-dropout-seed-2 about $0.50" in Limit(12.4, prices).refusal(
        waiting, [j for j in folder.jobs() if j != job], set()
    )
    with pytest.raises(UsageError, match="no price is known"):
        for one in folder.jobs():
            one.run.cost.unlink()
        Limit(5.0, Prices(folder, device="cpu"))


def test_two_runners_share_the_work_in_one_order_and_train_no_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runner takes its next run after what the other one has claimed or ended; losses appear as runs end."""
    monkeypatch.setattr(StopRequest, "listening", lambda _: nullcontext())  # signals reach the main thread alone
    file = write_study(tmp_path, seeds=[1, 2, 3], control_seeds=3)
    trained: list[str] = []
    lock, begun = threading.Lock(), threading.Barrier(2)

    class Trainer:
        """Ends each run at once, with a loss that depends on the arm and the seed."""

        num_slots = 1

        def submit(self, folder: StudyFolder, job: Job) -> "Future[int | None]":
            future: Future[int | None] = Future()
            with folder.claimed(job) as mine:
                if mine is None:
                    future.set_result(None)
                    return future
                with lock:
                    trained.append(job.name)
                effect = -0.05 if job.arm.name == "no-dropout" else 0.0
                finish_one(folder, job, 3.0 + 0.001 * math.sin(9 * job.seed) + effect)
            future.set_result(0)
            return future

        def stop(self, folder: StudyFolder) -> None:
            """Nothing to ask: runs end at once."""

        def close(self, folder: StudyFolder) -> None:
            """Nothing is left."""

    def work() -> Outcome:
        folder = open_folder(file)
        agenda = Agenda(folder, Prices(folder, device="cpu"))
        begun.wait()
        return run_study(folder, Trainer(), agenda, on_event=lambda _: None)

    with ThreadPoolExecutor(2) as pool:
        outcomes = [future.result() for future in [pool.submit(work) for _ in range(2)]]
    assert not any(one.has_failed or one.refusal for one in outcomes)
    assert sorted(trained) == sorted(job.name for job in open_folder(file).jobs()), "each once"
    rounds = [int(name[-1]) for name in trained]
    assert max(n for n, one in enumerate(rounds) if one == 1) < min(n for n, one in enumerate(rounds) if one == 3)
