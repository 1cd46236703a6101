"""``plan``: figures known by hand, memory against measured memory, prices, and what it must not do."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.errors import UsageError
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.models.costs import model_costs
from fromscratch.planning.bench import Case, Measurement, Row, Workload, run_worker
from fromscratch.planning.forecast import forecast_machine
from fromscratch.planning.machines import Machine, find_machines, read_machines, user_file
from fromscratch.planning.memory_model import Bytes, MemoryForecast, forecast_memory
from fromscratch.planning.speeds import measured_speeds, record_speed, speeds_file
from tests.command import nothing_written, refused, run_command
from tests.small import write_run_file

GPT2_UNTIED = {"preset": "gpt2-small", "attention_bias": False, "tied_head": False}
NO_MEMORY = MemoryForecast("cuda", {1: Bytes(1, 1, 2, 1, 1), 2: Bytes(1, 1, 2, 2, 2)})


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def plan_of(file: Path, *arguments: object) -> dict[str, Any]:
    answer = run_command("plan", file, "--json", *arguments)
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


def test_the_known_figures_of_gpt2_small_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fromscratch.session.estimate.forecast_memory", lambda *_, **__: NO_MEMORY)
    file = tmp_path / "gpt2.toml"
    file.write_text(
        tomli_w.dumps({"model": GPT2_UNTIED, "data": {"store": "not-there"}, "train": {"global_batch": 96}})
    )
    with nothing_written(tmp_path):
        plan = plan_of(file)
    assert plan["parameters"] == sum(plan["parameters_by_part"].values()) == 163_009_536
    assert plan["parameters_by_part"]["token_embedding"] == plan["parameters_by_part"]["head"] == 50_257 * 768
    assert (plan["chinchilla_tokens"], plan["chinchilla_tokens_rounded"]) == (3_260_190_720, 3_260_252_160)
    assert (plan["tokens"], plan["steps"]) == (3_260_252_160, 33_165)
    assert plan["flops"]["6N"] == pytest.approx(3.2e18, rel=0.01)
    assert plan["vocabulary_is_assumed"] and "does not exist yet" in plan["store_problem"]
    assert "here" in {machine["name"] for machine in plan["machines"]}
    told = run_command("plan", file, "--machine", "home-rtx-3090")
    assert "the vocabulary of 50,257 ids is assumed" in told.err and "assumed, MFU 40%" in told.out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["train.untie_head_at=900"], "train.untie_head_at = 900, but the run has only"),
        (["train.schedule={kind='constant', warmup_steps=900}"], "train.schedule needs 900 steps"),
        (["train.patience=1", "train.checkpoint_every=3"], "needs a checkpoint at every evaluation"),
    ],
)
def test_what_train_refuses_is_refused(tmp_path: Path, changed: list[str], says: str) -> None:
    file = write_run_file(tmp_path)
    sets = [argument for item in changed for argument in ("--set", item)]
    with nothing_written(tmp_path):
        for verb in (["plan", file, "--machine", "here"], ["train", file, "--runs-dir", tmp_path / "runs"]):
            refused(*verb, *sets, code=2, says=says)


def test_flops_as_hoffmann_counts_them() -> None:
    """By the formulas of appendix F, for the whole sequence, with numbers that differ from one another."""
    vocabulary, context, layers, heads, width, middle = 101, 32, 3, 2, 24, 96
    config = GPTConfig(
        vocab_size=vocabulary, context_length=context, num_layers=layers, num_heads=heads, embedding_dim=width
    )
    attention = 2 * 3 * context * width * width  # queries, keys, values
    attention += 2 * context * context * width + 3 * heads * context * context + 2 * context * context * width
    attention += 2 * context * width * width
    dense = 2 * context * (width * middle + width * middle)
    total = 2 * context * vocabulary * width + layers * (attention + dense) + 2 * context * width * vocabulary
    assert model_costs(config).hoffmann_flops_per_token == 3 * total / context


def test_a_tied_head_counts_once() -> None:
    parts = model_costs(GPTConfig(vocab_size=61, context_length=8, num_layers=2, num_heads=2, embedding_dim=8))
    assert parts.parameters_by_part["head"] == 0
    assert parts.parameters == sum(parts.parameters_by_part.values())
    assert parts.parameters_by_part["blocks.attention"] == 2 * (8 * 24 + 24 + 8 * 8 + 8)


def test_the_store_decides_vocabulary_and_budget(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    plan = plan_of(file, "--machine", "here")
    assert (plan["vocab_size"], plan["steps"], plan["store_problem"]) == (257, 20, None)
    assert plan["active_parameters"] == plan["parameters"]
    assert plan["memory_bytes"]["cpu"]["optimizer"] == pytest.approx(8 * plan["parameters"], rel=0.01)
    assert plan["checkpoint_bytes"] > 12 * plan["parameters"]
    assert plan["disk_bytes"] == plan["checkpoints_at_once"] * plan["checkpoint_bytes"]
    refused("plan", file, "--set", "data.tokens=1000000000", code=3, says="but the run needs")


def test_what_only_a_store_knows_is_refused_without_one(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('data = { store = "hf://owner/name", tokens = "all" }')
    refused("plan", file, code=2, says="plan downloads nothing; prepare it, or plan with a number")
    refused("plan", file, "--machine", "8xa100", code=2, says="did you mean '8xa100-40gb'?")


def test_predicted_memory_is_that_of_a_process_that_trains() -> None:
    """Within a tenth; ``benchmarks/memory.py`` compares three sizes."""
    shape = {"vocab_size": 4_096, "context_length": 128, "num_layers": 2, "num_heads": 4, "embedding_dim": 256}
    workload = Workload(GPTConfig.model_validate(shape), TrainConfig(precision="fp32", global_batch=16))
    baseline, measured = Measurement(Case(1, "fp32")), Measurement(Case(16, "fp32"))
    tiny = GPTConfig.model_validate({"vocab_size": 64, "context_length": 8, "preset": "laptop-tiny"})
    for work, measurement in ((Workload(tiny, workload.train), baseline), (workload, measured)):
        run_worker(work, measurement, find_hardware("cpu"), 1, max_seconds=0.1, as_memory_probe=True)
        assert measurement.error is None
    forecast = forecast_memory(workload, "cpu").at(16)
    grown = (measured.peak_memory_bytes or 0) - (baseline.peak_memory_bytes or 0)
    tensors = forecast.total - forecast_memory(Workload(tiny, workload.train), "cpu").at(1).total
    assert tensors == pytest.approx(grown, rel=0.25)  # without the process, which would hide an error
    total = tensors + (baseline.peak_memory_bytes or 0)
    assert total == pytest.approx(measured.peak_memory_bytes, rel=0.1)
    assert forecast.weights == forecast.gradients == 4 * workload.parameters


def test_a_deeper_model_is_extended_from_two_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"vocab_size": 997, "context_length": 64, "num_layers": 7, "num_heads": 2, "embedding_dim": 32}
    workload = Workload(GPTConfig.model_validate(shape), TrainConfig(precision="bf16", global_batch=8))
    whole = forecast_memory(workload, "cuda").at(8)
    monkeypatch.setattr("fromscratch.planning.memory_model.SIMULATED_LAYERS", (2, 4))
    assert forecast_memory(workload, "cuda").at(8).total == pytest.approx(whole.total, rel=0.001)


def test_the_largest_micro_batch_is_the_largest_within_the_budget() -> None:
    line = MemoryForecast("cpu", {1: Bytes(10, 0, 0, 2, 0), 2: Bytes(10, 0, 0, 4, 0)})
    assert [line.max_micro_batch(budget) for budget in (11, 12, 29.9, 30)] == [0, 1, 9, 10]


WORKLOAD = Workload(GPTConfig.model_validate({**GPT2_UNTIED, "vocab_size": 50_257}), TrainConfig(precision="bf16"))


def forecast(machine: Machine, **options: Any) -> Any:
    given = {"tokens": 10**9, "speeds": [], "memory": lambda _: NO_MEMORY, **options}
    return forecast_machine("m", machine, WORKLOAD, **given)


def test_devices_divide_a_model_of_which_no_copy_fits() -> None:
    gib = 2**30
    forecast = MemoryForecast("cuda", {n: Bytes(8 * gib, 8 * gib, 16 * gib, n * gib, n * gib) for n in (1, 2)})
    one = forecast.divided(8).at(2)
    assert (one.weights, one.gradients, one.optimizer, one.activations) == (9 * gib, gib, 2 * gib, 2 * gib)
    workload = Workload(GPTConfig(vocab_size=50_257), TrainConfig(global_batch=64))
    machine = Machine(device="NVIDIA A100", devices=8)

    def micro_batch(workload: Workload, machine: Machine, budget: float) -> tuple[int | None, bool]:
        found = forecast_machine(
            "a", machine, workload, tokens=1, speeds=[], memory=lambda _: forecast, budget_bytes=budget
        )
        return found.micro_batch, found.is_divided

    assert micro_batch(workload, machine, 38 * gib) == (3, False)
    assert micro_batch(workload, machine, 20 * gib) == (4, True)
    assert micro_batch(workload, machine, 12 * gib) == (0, True)
    assert micro_batch(workload, Machine(device="NVIDIA A100", devices=1), 20 * gib) == (0, False)
    whole = {"global_batch": 64, "nonfinite": {"kind": "random-step", "norm": 0.25}}
    assert micro_batch(Workload(workload.model, TrainConfig.model_validate(whole)), machine, 20 * gib) == (0, False)


def test_hours_and_dollars_from_an_assumed_share_of_the_peak() -> None:
    one = forecast(Machine.model_validate({"device": "A100", "devices": 8, "dollars_per_hour": [2, 4]}), mfu=0.5)
    hours = 10**9 * WORKLOAD.flops_per_token / (8 * 312e12 * 0.5) / 3600
    assert one.hours == pytest.approx(hours) and one.dollars == pytest.approx((2 * hours, 4 * hours))
    assert not one.is_measured and one.basis == "assumed, MFU 50%"
    unknown = forecast(Machine(device="Unheard-of 9000"))
    assert (unknown.hours, unknown.dollars, unknown.dollars_per_hour) == (None, None, None)


def test_a_measured_speed_is_preferred_and_its_memory_must_agree() -> None:
    hardware = Hardware(find_hardware("cpu").device, "NVIDIA A100-SXM4-40GB", 42_300_000_000)
    row = Row("engine", "bf16", True, 8, 1000.0, None, 1, 1.0, 1.0, 1.0, 1.0, None)
    record_speed(WORKLOAD, hardware, [row, Row(**{**row.__dict__, "tokens_per_second": 900.0})], date="2026-11-25")
    speeds = measured_speeds(WORKLOAD)
    assert [speed.tokens_per_second for speed in speeds] == [1000.0]
    small = forecast(Machine(device="A100", devices=8, memory_gb=40), speeds=speeds)
    large = forecast(Machine(device="A100", devices=8, memory_gb=80), speeds=speeds)
    assert small.is_measured and small.tokens_per_second == 8000.0 and "measured 2026-11-25" in small.basis
    assert not large.is_measured
    assert measured_speeds(Workload(WORKLOAD.model, TrainConfig(precision="fp16"))) == []
    speeds_file().write_text("damaged")
    assert measured_speeds(WORKLOAD) == []


def test_prices_that_ship_are_dated_and_the_users_come_first(tmp_path: Path) -> None:
    shipped = read_machines()
    assert shipped["8xa100-40gb"].price_range == (10.32, 10.32) and shipped["h100-80gb"].price_range == (2.4, 4.29)
    assert all(one.date and one.source and one.price_range for one in shipped.values())
    assert shipped["home-rtx-3090"].price_range == pytest.approx((0.135, 0.135))
    user_file().parent.mkdir(parents=True)
    user_file().write_text('[machines.8xb200]\ndollars_per_hour = 30\n[machines.mine]\ndevice = "cpu"\n')
    own = read_machines()
    assert own["8xb200"].price_range == (30, 30) and own["8xb200"].devices == 8 and own["mine"].price_range is None
    assert list(find_machines(["mine"])) == ["mine"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[machines.m]\ndevice = "A100"\nprice = 3', "machines.m: price: unknown key"),
        ("[machines.m]\ndevices = 2", "machines.m: device: is required"),
        ('[machines.m]\ndevice = "A100"\nwatts = 300', "watts and dollars_per_kwh belong together"),
        ('[machines.m]\ndevice = "A100"\ndollars_per_hour = [4, 2]', "the first price must not be above the second"),
        ('[machines.m]\ndevice = "A100"\ndollars_per_hour = "4"', "machines.m: dollars_per_hour"),
        ("[machine.m]\n", "machine: must be tables like [machines.NAME]"),
    ],
)
def test_a_wrong_file_of_machines_is_refused(text: str, says: str) -> None:
    user_file().parent.mkdir(parents=True)
    user_file().write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_machines()
    assert says in str(refusal.value) and str(user_file()) in str(refusal.value)
