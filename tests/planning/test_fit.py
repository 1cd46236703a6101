"""The largest and the fastest micro-batch: the search on known machines, and on this one against brute force."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fromscratch.config.model import GPTConfig
from fromscratch.config.train import TrainConfig
from fromscratch.errors import FromScratchError
from fromscratch.machine.acceleration import Acceleration
from fromscratch.machine.hardware import find_hardware
from fromscratch.planning import fit
from fromscratch.planning.bench import Workload
from fromscratch.planning.cache import cache_file
from fromscratch.planning.fit import Fit, MemoryLine, Probe, find_fit, memory_budget_bytes, probe_in_process
from fromscratch.planning.fit_cache import CACHE, cache_fit, cached_micro_batch
from fromscratch.runs.directory import RunDirectory
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from tests.command import refused, run_command
from tests.small import write_run_file

CPU = find_hardware("cpu")
MIB = 2**20


class Machine:
    """A machine whose memory and speed are known; counts what it is asked."""

    def __init__(self, budget: int, *, fixed: int, each: float, plateau: int = 0, silent: bool = False) -> None:
        self.budget, self.fixed, self.each, self.plateau, self.silent = budget, fixed, each, plateau, silent
        self.asked: list[int] = []

    def memory(self, size: int) -> int:
        return max(self.plateau + size, round(self.fixed + self.each * size))

    def largest(self) -> int:
        return max(size for size in range(1, 100_000) if self.memory(size) <= self.budget)

    def __call__(self, size: int) -> Probe:
        self.asked.append(size)
        fits = self.memory(size) <= self.budget
        known = fits or not self.silent
        return Probe(size, fits, self.memory(size) if known else None, size / (1 + 0.02 * size**1.3) if known else None)


@pytest.mark.parametrize("silent", [False, True], ids=["says how much", "runs out"])
@pytest.mark.parametrize("evaluation", [0.0, 0.7], ids=["steps alone", "evaluation takes more at first"])
@pytest.mark.parametrize(("budget", "fixed", "each"), [(8_000, 600, 13.0), (80_000, 2_000, 900.0), (5_000, 4_990, 4.0)])
def test_the_largest_is_found_to_one_sequence_in_few_probes(
    budget: int, fixed: int, each: float, evaluation: float, silent: bool
) -> None:
    machine = Machine(budget, fixed=fixed, each=each, plateau=round(evaluation * budget), silent=silent)
    found = find_fit(machine, budget_bytes=budget, local_batch=10)
    assert machine.largest() - 1 <= found.largest <= machine.largest()
    assert len(machine.asked) == len(set(machine.asked)) <= 16
    useful = [p for p in found.probes if p.fits and p.micro_batch <= 10]
    assert found.tokens_per_second == max(p.tokens_per_second or 0 for p in useful) and found.fastest <= 10


@pytest.mark.parametrize("share", [1, 2, 7, 400])
def test_a_share_that_fits_takes_two_probes(share: int) -> None:
    machine = Machine(8_000, fixed=600, each=13.0)
    found = find_fit(machine, budget_bytes=8_000, local_batch=share, share_first=True)
    assert machine.asked == [share, share // 2][: 2 if share > 1 else 1]
    assert found.largest == share and found.fastest in machine.asked


def test_a_share_that_does_not_fit_begins_the_search() -> None:
    machine = Machine(8_000, fixed=600, each=13.0, silent=True)
    found = find_fit(machine, budget_bytes=8_000, local_batch=2_000, share_first=True)
    assert machine.largest() - 1 <= found.largest <= machine.largest() and machine.asked[0] == 2_000


def test_the_line_is_the_one_that_was_drawn() -> None:
    found = find_fit(Machine(8_000, fixed=600, each=13.0), budget_bytes=8_000, local_batch=4)
    assert found.line.fixed_bytes == pytest.approx(600) and found.line.bytes_per_sequence == pytest.approx(13)
    assert MemoryLine(100.0, 0.0).max_sequences(1_000) is None and MemoryLine(100.0, 7.0).max_sequences(1_000) == 128


def test_not_even_one_sequence() -> None:
    with pytest.raises(FromScratchError, match="not even one sequence fits"):
        find_fit(Machine(10, fixed=600, each=13.0), budget_bytes=10, local_batch=4)


def test_on_this_machine_it_agrees_with_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real probes; the sizes around the answer are tried again, each in a process of its own."""
    monkeypatch.setattr(fit, "MAX_SECONDS", 0.0)  # two steps a probe: memory is measured, not speed
    shape = {"vocab_size": 64, "context_length": 256, "num_layers": 24, "num_heads": 2, "embedding_dim": 64}
    workload = Workload(
        GPTConfig.model_validate({**shape, "dropout": 0.0}), TrainConfig.model_validate({"precision": "fp32"})
    )
    tried = probe_in_process(workload, CPU, Acceleration(), budget_bytes=2**40)(8)
    budget = round(1.1 * (tried.peak_memory_bytes or 0))  # what a process has before it begins is the machine's affair
    probe = probe_in_process(workload, CPU, Acceleration(), budget_bytes=budget)
    found = find_fit(probe, budget_bytes=budget, local_batch=1)
    assert found.largest >= 8 and found.line.bytes_per_sequence > MIB
    around = {size: probe(size).peak_memory_bytes or 0 for size in (found.largest - 1, found.largest + 2)}
    assert around[found.largest - 1] < 1.01 * budget < 1.02 * around[found.largest + 2]  # to what a process repeats


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FROMSCRATCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_an_answer_is_remembered_and_used_for_this_model_only(tmp_path: Path, home: Path) -> None:
    file = write_run_file(tmp_path)
    plan, run = plan_run(file), RunDirectory(tmp_path / "runs" / "x")
    workload = Workload(plan.config.model, plan.config.train)
    assert cached_micro_batch(workload, CPU, Acceleration()) is None
    found = Fit(64, 3, 1_000.0, MemoryLine(1.0, 2.0), 100, [])
    cache_fit(found, workload, CPU, Acceleration())
    assert cache_file(CACHE).parent == home and cached_micro_batch(workload, CPU, Acceleration()) == 3
    assert cached_micro_batch(workload, CPU, Acceleration(activation_checkpointing=True)) is None
    machine = MachineOptions(device="cpu")
    placement = place_run(plan, run, machine)
    assert placement.micro_batch == 3 and not placement.is_default_micro_batch  # 8 sequences as 3 + 3 + 2
    assert place_run(plan, run, machine, world_size=4).micro_batch == 2
    assert place_run(plan, run, MachineOptions(device="cpu", micro_batch=8)).micro_batch == 8
    wider = plan_run(file, ["model.embedding_dim=32"])
    assert place_run(wider, run, machine).micro_batch == 8 and place_run(wider, run, machine).is_default_micro_batch
    for larger in ("train.averages.ema=0.9", "train.untie_head_at=0.5"):
        assert place_run(plan_run(file, [larger]), run, machine).is_default_micro_batch, larger
    cache_file(CACHE).write_text("{damaged")
    assert place_run(plan, run, machine).micro_batch == 8


def test_the_verb_prints_the_line_and_remembers(tmp_path: Path, home: Path) -> None:
    command = ("fit", write_run_file(tmp_path), "--json", "--memory")
    refused(*command, "0.001", code=2, says="--memory")
    assert not home.exists()
    little = run_command(*command, "0.02")
    assert little.code == 1 and "not even one sequence fits into 20 MiB" in little.err and "--shard" not in little.err
    two = run_command(*command, "0.02", "--processes", "2")
    assert two.code == 1 and "2 processes that divide the model among them need about" in two.err


def test_the_budget_is_a_part_of_what_is_free() -> None:
    assert 100 * MIB < memory_budget_bytes(CPU) < 2**50
    assert json.loads(json.dumps(memory_budget_bytes(CPU))) == memory_budget_bytes(CPU)


def test_a_process_does_not_count_the_memory_of_the_one_that_started_it() -> None:
    ballast = bytearray(800 * MIB)
    ballast[::4096] = b"x" * len(range(0, len(ballast), 4096))  # so that it is really there
    code = "from fromscratch.machine.hardware import find_hardware as f; print(f('cpu').peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert 100 * MIB < int(done.stdout) < 700 * MIB < CPU.peak_memory_bytes()
    assert len(ballast) == 800 * MIB
