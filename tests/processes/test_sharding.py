"""A model that two processes divide among them (FSDP2): the result of one process, whole checkpoints, any resume."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from fromscratch.errors import UsageError
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning import sharding
from fromscratch.planning.sharding import Sharding, choose_sharding
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import LATEST
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.training.gradients import Outcome
from tests.processes import sharding_cases
from tests.processes.forked import Command, Fork, agent
from tests.processes.test_distributed import TIMEOUT
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.test_recurrent import run_file
from tests.training.test_resume import assert_same_end

FILES = ("model", "optimizer", "ema")
INITIAL_SCALE = 65_536.0
"""The loss scale of a first step, torch's default."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of both processes, and of one alone."""
    folder = tmp_path_factory.mktemp("sharding")
    train = {**SMALL_RUN["train"], "averages": {"ema": 0.9}, "sample_every": 10, "checkpoint_every": 10}
    file = write_run_file(folder, train=train, data={"tokens": 10 * 8 * 16}, eval={"tokens": 128, "sample_tokens": 4})
    run_small(file, name="alone", micro_batch=2)
    run_small(file, name="alone-divided", stop_after=sharding_cases.STOP, micro_batch=2)
    for name, override in (sharding_cases.OTHER_SCIENCE | sharding_cases.DIVIDED_SCIENCE).items():
        run_small(file, name=f"{name}-alone", overrides=[override])
    lstm = run_file(folder, "lstm", data={"validation_share": 0.0}, train={"averages": {"ema": 0.9}})
    run_small(lstm, name="lstm-alone", stop_after=sharding_cases.STOP)
    torchrun = Fork(Command(agent, (["--nproc-per-node=2"], sharding_cases.main, Path("small.toml")), folder, TIMEOUT))
    assert torchrun.wait() == 0, torchrun.stderr
    run_small(file, name="divided-alone")
    return folder


def found(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def run_of(folder: Path, name: str) -> RunDirectory:
    return RunDirectory(folder / "runs" / name)


def last_tensors(run: RunDirectory) -> dict[str, Tensor]:
    return {
        f"{file}: {name}": tensor
        for file in FILES
        for name, tensor in load_file(run.checkpoints / LATEST / f"{file}.safetensors").items()
    }


def assert_close(one: RunDirectory, other: RunDirectory, *, weights: float = 1e-4, state: float = 1e-6) -> None:
    """The same checkpoint, losses, norms and evaluations, but for the order of sums.

    Args:
        weights: largest difference of a weight.
        state: largest difference of the optimiser's state.
    """
    tensors, wanted = last_tensors(one), last_tensors(other)
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == wanted[name].shape, name
        assert (tensor - wanted[name]).abs().max() < (state if "optimizer" in name else weights), name
    for key in ("loss", "grad_norm", "learning_rate", "tokens"):
        curves = [[record[key] for record in read_records(run.metrics)] for run in (one, other)]
        assert curves[0] == pytest.approx(curves[1], rel=2e-3, abs=1e-5), key
    losses = [
        [(e["loss"], e.get("loss_ema", 0.0)) for e in read_records(run.events) if e["event"] == "evaluation"]
        for run in (one, other)
    ]
    assert len(losses[0]) == len(losses[1])
    for pair, other_pair in zip(*losses, strict=True):
        assert pair == pytest.approx(other_pair, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("divided", "alone"),
        ("divided-copies", "alone"),
        ("copies-divided", "alone"),
        ("divided-alone", "alone"),
        ("alone-divided", "alone"),
        ("values", "values-alone"),
        ("auxiliary", "auxiliary-alone"),
        ("lstm", "lstm-alone"),
        ("compiled", "alone"),
        ("ramp-copies", "ramp-alone"),
        ("ramp-divided", "ramp-alone"),
        ("untied-copies", "untied-alone"),
    ],
)
def test_the_result_is_that_of_one_process_and_of_copies(folder: Path, name: str, wanted: str) -> None:
    assert_close(run_of(folder, name), run_of(folder, wanted))


def test_a_script_divides_a_model_and_is_told_once(folder: Path) -> None:
    assert json.loads(run_of(folder, "lstm").machine.read_text())["sharded"] is True
    assert [["lanes" in line for line in one["told"]] for one in found(folder)] == [[True], []]


def test_a_divided_model_is_compiled_block_by_block(folder: Path) -> None:
    assert [one["graphs"] for one in found(folder)] == [SMALL_RUN["model"]["num_layers"]] * 2
    machine = json.loads(run_of(folder, "compiled").machine.read_text())
    assert machine["sharded"] and machine["compile"]


def test_16_bit_runs_differ_from_those_of_one_process_by_their_rounding(folder: Path) -> None:
    assert_close(run_of(folder, "muon"), run_of(folder, "muon-alone"), weights=5e-3, state=1e-3)
    assert_close(run_of(folder, "fp16"), run_of(folder, "fp16-alone"), weights=2e-2, state=1e-3)


def test_muon_gathers_matrices_and_steps_as_in_one_process(folder: Path) -> None:
    for one in found(folder):
        assert any("query_key_value.weight" in name for name in one["muon_steps"])
        assert max(one["muon_steps"].values()) < 1e-7


def test_a_divided_run_resumes_to_the_bit(folder: Path) -> None:
    one, other = run_of(folder, "divided"), run_of(folder, "divided-divided")
    assert_same_end(one, other)
    tensors, wanted = last_tensors(one), last_tensors(other)
    assert all(bool((tensor == wanted[name]).all()) for name, tensor in tensors.items())


def test_each_process_holds_half_and_both_are_told_of_it(folder: Path) -> None:
    whole = sum(tensor.numel() for name, tensor in last_tensors(run_of(folder, "alone")).items() if "model" in name)
    held = [one["held"] for one in found(folder)]
    assert sum(held) == whole and max(held) < 0.55 * whole
    machine = json.loads(run_of(folder, "divided").machine.read_text())
    assert machine["sharded"] is True and "sharded" not in json.loads(run_of(folder, "ramp-copies").machine.read_text())
    samples = [
        [e["text"] for e in read_records(run_of(folder, name).events) if e["event"] == "sample"]
        for name in ("divided", "alone")
    ]
    assert len(samples[0]) == len(samples[1]) > 0


def test_f19_an_infinity_in_one_part_holds_the_step_in_all(folder: Path) -> None:
    for case, outcome in (("not_finite", Outcome.NONFINITE), ("overflow", Outcome.SCALE_OVERFLOW)):
        for one in (process[case] for process in found(folder)):
            assert one["unchanged"] and one["moved"]
            assert one["outcomes"][0] == outcome and one["outcomes"][1] < Outcome.INFINITE_NORM


def test_f20_an_overflow_in_one_part_lowers_the_loss_scale_of_all(folder: Path) -> None:
    for one in found(folder):
        scaler = one["overflow"]["scaler"]
        assert scaler["scale"] == INITIAL_SCALE * scaler["backoff_factor"] and scaler["_growth_tracker"] == 1


@pytest.mark.parametrize(
    ("override", "processes", "problem"),
    [
        ("train.seed=1", 1, "add --processes N"),
        ("train.nonfinite=random-step", 2, "draws whole matrices"),
        ("train.untie_head_at=0.5", 2, "untie_head_at adds a matrix"),
        ("train.global_batch=9", 2, "2 processes do not divide train.global_batch = 9"),
    ],
)
def test_what_cannot_be_divided_is_refused(tmp_path: Path, override: str, processes: int, problem: str) -> None:
    plan = plan_run(write_run_file(tmp_path), [override])
    machine = MachineOptions(device="cpu", shard=Sharding.ON)
    with pytest.raises(UsageError, match=problem):
        place_run(plan, RunDirectory(tmp_path / "run"), machine, world_size=processes)


def test_the_machine_divides_where_a_copy_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = plan_run(write_run_file(tmp_path)).config
    hardware = find_hardware("cpu")
    assert not choose_sharding(Sharding.AUTO, config, hardware, world_size=2), "memory of a CPU is shared"
    monkeypatch.setattr(sharding, "is_gpu", lambda _hardware: True)
    for budget, divided in ((1 << 40, False), (1 << 10, True)):
        monkeypatch.setattr("fromscratch.planning.fit.memory_budget_bytes", lambda _hardware, size=budget: size)
        assert choose_sharding(Sharding.AUTO, config, hardware, world_size=2) == divided
        assert not choose_sharding(Sharding.OFF, config, hardware, world_size=2)
        assert not choose_sharding(Sharding.AUTO, config, hardware, world_size=1)
    assert not choose_sharding(Sharding.AUTO, config, hardware, world_size=3)
    assert "cannot be divided: 3 processes do not divide train.global_batch = 8" in caplog.text
