"""The speed table: cases, figures, a worker process that really measures, a picture."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fromscratch.cli.bench import predicted_hours, workload_of
from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.machine.precision import Precision
from fromscratch.models.costs import model_costs
from fromscratch.planning import bench, bench_worker, peak_flops
from fromscratch.planning.bench import (
    ENGINE,
    REFERENCE,
    Case,
    Measurement,
    Workload,
    cases_for,
    default_micro_batches,
    fastest,
    gpu_cases,
    measure,
    reference_cases,
    summarise,
)
from fromscratch.planning.bench_chart import draw_speed
from fromscratch.planning.cache import cache_file
from fromscratch.planning.peak_flops import PeakFlops, known_peak_flops
from fromscratch.session.plan import plan_run
from fromscratch.training import step as step_module
from fromscratch.training.objective import Runtime
from tests.command import refused, run_command
from tests.small import write_run_file

SHAPE = {"vocab_size": 61, "context_length": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 16}
CPU = find_hardware("cpu")
WORKLOAD = Workload(GPTConfig.model_validate(SHAPE), TrainConfig())


def test_cases_are_every_combination_once() -> None:
    cases = cases_for(micro_batches=[1, 2, 2], precisions=["bf16", "fp32"], compiled=[False, True])
    assert len(cases) == len(set(cases)) == 8
    assert reference_cases(GPTConfig(), CPU, [4]) == [Case(4, "fp32", False, REFERENCE)]
    assert default_micro_batches(96, 16) == [1, 2, 4, 8, 16]
    assert default_micro_batches(12, 32) == [1, 2, 4, 8, 12]


def test_a_gpu_is_measured_in_few_processes() -> None:
    assert gpu_cases(micro_batches=[1, 2, 4, 8, 16], precision="bf16", can_compile=True) == [
        Case(8, "bf16", compile=True),
        Case(16, "bf16", compile=True),
        Case(16, "bf16"),
    ]
    assert gpu_cases(micro_batches=[1], precision="fp16", can_compile=False) == [Case(1, "fp16")]


def test_figures_by_hand() -> None:
    measurement = Measurement(Case(2, "fp32"), [0.1, 0.4, 0.2, 0.2, 0.2], 3.0, 7)
    row = summarise(measurement, WORKLOAD, lambda _precision: 1e9)
    assert row.tokens_per_second == pytest.approx(2 * 16 / 0.2)
    assert row.mfu == pytest.approx(160 * WORKLOAD.flops_per_token / 1e9)
    assert (row.step_seconds_p10, row.step_seconds_p50, row.step_seconds_p90) == (0.1, 0.2, 0.4)
    unknown = summarise(measurement, WORKLOAD, lambda _precision: None)
    assert unknown.mfu is None and unknown.tokens_per_second == row.tokens_per_second
    failed = summarise(Measurement(Case(4, "fp32"), error="out of memory"), WORKLOAD, lambda _precision: 1e9)
    assert failed.tokens_per_second is None and failed.error == "out of memory"
    assert fastest([row, failed], "fp32") is row and fastest([row], "bf16") is None


def test_a_case_is_measured_in_a_process_of_its_own_and_a_bad_one_says_why() -> None:
    (measurement,) = measure(WORKLOAD, [Case(2, "fp32")], CPU, steps=2, rounds=2)
    assert measurement.error is None
    assert len(measurement.step_seconds) == 4 and min(measurement.step_seconds) > 0
    assert measurement.peak_memory_bytes is not None and measurement.peak_memory_bytes > 2**20
    (bad,) = measure(WORKLOAD, [Case(2, "fp32")], Hardware(torch.device("cuda", 77), "none", None), steps=1)
    assert bad.error is not None and "CUDA devices" in bad.error


def test_the_reference_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_worker, "keep_freed_memory", lambda: pytest.fail("the reference must not tune malloc"))
    runtime = Runtime(CPU.device, 1, Precision("fp32", CPU.device))
    objective = bench_worker.random_objective(WORKLOAD.model, runtime)
    case = Case(1, "fp32", recipe=REFERENCE)
    stepper = bench_worker.build_stepper(WORKLOAD.model, WORKLOAD.train, case, objective, runtime)
    assert type(stepper.model.blocks[0].attention).__name__ == "ExplicitAttention"
    assert type(stepper.model.head).__name__ == "LinearHead"
    assert not stepper.optimizer.optimizers[0].defaults["fused"]


@pytest.mark.parametrize("recipe", [ENGINE, REFERENCE])
def test_the_references_dropout_is_torchs_own(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(CPU.device, 2, Precision("fp32", CPU.device))
    objective = bench_worker.random_objective(WORKLOAD.model, runtime)
    stepper = bench_worker.build_stepper(
        WORKLOAD.model, WORKLOAD.train, Case(2, "fp32", recipe=recipe), objective, runtime
    )
    keys = []
    monkeypatch.setattr(step_module, "set_sequence_keys", lambda _model, *given: keys.append(given[0]))
    stepper.take(0, 0.1)
    assert bool(keys[0]) == (recipe == ENGINE) and stepper.batches.targets_in(0) == 2 * 16


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA RTX A1000", None),
        ("Something Else", None),
    ],
)
def test_peaks_by_name_and_unknown_stays_unknown(name: str, peak: float | None) -> None:
    hardware = Hardware(torch.device("cuda", 0), name, None)
    assert hardware.peak_flops("bf16") == peak
    assert hardware.peak_flops("fp32") is None


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))


def test_the_peak_of_a_cpu_is_measured_once(home: None) -> None:
    assert known_peak_flops(CPU, "fp32") is None
    peak = PeakFlops(CPU)
    assert peak("fp32") == peak("fp32") == known_peak_flops(CPU, "fp32")
    assert (peak("fp32") or 0) > 1e8


def test_a_remembered_peak_is_of_this_processor_these_threads_and_this_precision(home: None) -> None:
    PeakFlops(CPU).sample("fp32")
    assert known_peak_flops(CPU, "bf16") is None
    assert known_peak_flops(Hardware(CPU.device, "another processor", None), "fp32") is None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert known_peak_flops(CPU, "fp32") is None
    finally:
        torch.set_num_threads(threads)
    cache_file(peak_flops.CACHE).write_text("[damaged")
    assert known_peak_flops(CPU, "fp32") is None


def test_train_shows_mfu_on_a_cpu_only_where_its_peak_was_measured(
    tmp_path: Path, home: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", write_run_file(tmp_path), "--runs-dir", tmp_path / "runs", "--quiet", "--device", "cpu")
    unknown = run_command(*command)
    assert unknown.code == 0 and "MFU" not in unknown.out
    monkeypatch.setattr(peak_flops, "measured_peak_flops", lambda _precision: 1e12)
    PeakFlops(CPU).sample("fp32")
    facts = json.loads(run_command(*command, "--json").out)
    flops = model_costs(plan_run(tmp_path / "small.toml").config.model).training_flops_per_token
    assert facts["mfu"] == pytest.approx(facts["tokens_per_second"] * flops / 1e12)
    assert "MFU" in run_command(*command).out


def test_the_highest_peak_counts_and_a_gpu_is_not_measured(home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [3e9, 5e9, 4e9]
    monkeypatch.setattr(peak_flops, "measured_peak_flops", lambda _precision: found.pop(0))
    told = json.dumps({"error": None, "step_seconds": [0.1], "first_step_seconds": 0.1, "peak_memory_bytes": 1})
    monkeypatch.setattr(bench, "WORKER", ["sh", "-c", 'cat > /dev/null; echo "$0"', told])
    peak = PeakFlops(CPU)
    measure(WORKLOAD, [Case(1, "fp32")], CPU, steps=1, rounds=3, peak=peak)
    assert peak("fp32") == known_peak_flops(CPU, "fp32") == 5e9 and not found
    gpu = PeakFlops(Hardware(torch.device("cuda", 0), "NVIDIA H200", None))
    gpu.sample("bf16")
    assert gpu("bf16") == 989e12 and gpu("fp32") is None


def test_the_picture_is_drawn_without_what_failed(tmp_path: Path) -> None:
    measurements = [
        Measurement(Case(1, "fp32"), [0.1]),
        Measurement(Case(2, "fp32"), [0.15]),
        Measurement(Case(2, "fp32", recipe=REFERENCE), [0.3]),
        Measurement(Case(4, "fp32"), error="out of memory"),
    ]
    rows = [summarise(m, WORKLOAD, lambda _precision: None) for m in measurements]
    draw_speed(tmp_path / "speed.png", rows, "a title")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_verb_prints_a_table_predicts_hours_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    file = write_run_file(tmp_path)
    command = ("bench", file, "--micro-batch", "4", "--steps", "1")
    done = run_command(*command, "--json", "--reference")
    facts = json.loads(done.out)
    assert [row["recipe"] for row in facts["rows"]] == ["engine", "reference"]
    assert all(row["tokens_per_second"] > 0 and 0 < row["mfu"] < 1 for row in facts["rows"])
    assert all(row["peak_memory_bytes"] > 2**20 and row["error"] is None for row in facts["rows"])
    assert facts["predicted_hours"] == pytest.approx(20 * 8 * 16 / facts["rows"][0]["tokens_per_second"] / 3600)
    (planned,) = json.loads(run_command("plan", file, "--machine", "here", "--json").out)["machines"]
    assert planned["is_measured"] and planned["hours"] == pytest.approx(facts["predicted_hours"])
    refused(*command, "--precision", "int3", code=2, says="--precision int3")


def test_too_many_processes_are_refused_by_fit_too(tmp_path: Path) -> None:
    says = "9 processes, but train.global_batch = 8 sequences; use at most 8"
    refused("fit", write_run_file(tmp_path), "--processes", 9, code=2, says=says)


def test_a_store_that_is_too_small_still_gives_the_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_run_file(tmp_path)
    workload, plan = workload_of(file, ["data.tokens=10_000_000"], "cpu")
    assert plan is None and workload.model.vocab_size == 257
    assert "measuring with a vocabulary of 257 ids" in capsys.readouterr().err


def test_a_store_on_a_hub_that_cannot_be_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workload, plan = workload_of(write_run_file(tmp_path), ["data.store=hf://me/nothing"], "cpu")
    assert plan is None and workload.model.vocab_size == 50_257
    assert "measuring with a vocabulary of 50,257 ids" in capsys.readouterr().err


def test_several_gpus_divide_the_predicted_hours(tmp_path: Path) -> None:
    plan = plan_run(write_run_file(tmp_path))
    row = summarise(Measurement(Case(2, "fp32"), [0.1]), WORKLOAD, lambda _precision: None)
    alone = predicted_hours(plan, [row], devices=1)
    assert alone == pytest.approx(20 * 8 * 16 / 320 / 3600)
    assert predicted_hours(plan, [row], devices=4) == pytest.approx((alone or 0) / 4)


def test_the_verb_needs_no_store_and_takes_keys_and_processes(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    shutil.rmtree(tmp_path / "store")
    command = ("bench", file, "--steps", "1", "--precision", "fp32", "--json")
    changed = ("--set", "model.vocab_size=64", "--set", "model.num_layers=1", "--processes", 4)
    done = run_command(*command, *changed)
    facts = json.loads(done.out)
    assert "no such folder" in done.err and "a vocabulary of 64 ids" in done.err and facts["predicted_hours"] is None
    assert max(row["micro_batch"] for row in facts["rows"]) <= 8 // 4
    refused("bench", "--set", "train.seed=1", code=2, says="name the run file")
    refused(*command, "--processes", 9, code=2, says="9 processes, but train.global_batch = 8")
    refused(*command, "--set", "model.layers=1", code=2, says="num_layers")
