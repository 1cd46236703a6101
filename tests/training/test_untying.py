"""A head that is untied part-way: tied before, a copy with its optimiser state then, exactly resumed and told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fromscratch.config.loading import parse_run_config
from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.weights import model_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.session.disk import plan_disk
from fromscratch.session.plan import plan_run
from tests.command import run_command
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.test_resume import assert_same_end, metrics_of

EMBEDDING, HEAD = "token_embedding.weight", "head.weight"
KEEP_ALL: dict[str, Any] = {"checkpoint_every": 1, "keep_checkpoints": 100, "evaluate_every": 0}


def write(folder: Path, name: str = "untied", *, at: int | float | None = 0.5, **train: Any) -> Path:
    place = {} if at is None else {"untie_head_at": at}
    return write_run_file(folder, name, train={**SMALL_RUN["train"], **place, **train})


def tensors(run: RunDirectory, step: int, file: str = "model") -> dict[str, Tensor]:
    return load_file(run.checkpoints / f"step-{step:08}" / f"{file}.safetensors")


def test_both_matrices_continue_from_the_tied_one_with_its_momentum(tmp_path: Path) -> None:
    plain = {"optimizer": {"kind": "sgd", "learning_rate": 0.1}, "clip": "none", "schedule": "constant", **KEEP_ALL}
    tied, _ = run_small(write(tmp_path, "tied", at=None, **plain), name="tied", stop_after=12)
    untied, _ = run_small(write(tmp_path, at=10, **plain), name="untied", stop_after=12)
    before = tensors(tied, 10)
    assert (
        tensors(untied, 10).keys() == before.keys() == tensors(tied, 11).keys() == tensors(untied, 11).keys() - {HEAD}
    )
    for name, tensor in tensors(untied, 10).items():
        assert torch.equal(tensor, before[name]), "the same run up to here"
    after, old = tensors(untied, 11), before[EMBEDDING]
    momentum = 0.1 * 0.9 * tensors(tied, 10, "optimizer")[f"{EMBEDDING}/momentum_buffer"]
    moved, tied_moved = (after[EMBEDDING] - old) + (after[HEAD] - old), tensors(tied, 11)[EMBEDDING] - old
    torch.testing.assert_close(moved, tied_moved - momentum, rtol=1e-4, atol=1e-6)  # each has the whole momentum
    assert not torch.equal(after[EMBEDDING], after[HEAD])
    for name in before.keys() - {EMBEDDING}:
        torch.testing.assert_close(after[name], tensors(tied, 11)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [{"kind": "adamw"}, {"kind": "muon", "adamw_learning_rate": 0.01}])
def test_f10_it_resumes_to_the_bit(tmp_path: Path, optimizer: dict[str, Any]) -> None:
    file = write(tmp_path, optimizer={**optimizer, "learning_rate": 0.01}, averages={"ema": 0.9})
    untouched, _ = run_small(file, name="untouched")
    for step in (9, 10, 11):
        run_small(file, name=f"stopped-{step}", stop_after=step)
        resumed, _ = run_small(file, name=f"stopped-{step}")
        assert_same_end(untouched, resumed)
        one, other = tensors(untouched, 20, "ema"), tensors(resumed, 20, "ema")
        assert HEAD in one and all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_before_and_after_open_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, summary = run_small(write(tmp_path, **KEEP_ALL), name="run")
    monkeypatch.chdir(tmp_path)
    cpu = find_hardware("cpu")
    tied, untied = open_model("run@step-10", cpu), open_model("run@step-11", cpu)
    assert (tied.config.tied_head, untied.config.tied_head) == (True, False)  # type: ignore[attr-defined]
    assert model_tensors(tied.model).keys() == model_tensors(untied.model).keys() - {HEAD}
    assert torch.equal(model_tensors(untied.model)[HEAD], tensors(run, 11)[HEAD])
    counts = [sum(parameter.numel() for parameter in one.model.parameters()) for one in (tied, untied)]
    assert summary.parameters == counts[1] > counts[0]
    told = [(e["step"], e["parameters"]) for e in read_records(run.events) if e["event"] == "head-untied"]
    assert told == [(10, counts[1])]
    size = sum(path.stat().st_size for path in (run.checkpoints / "step-00000020").iterdir())
    assert plan_disk(plan_run(write(tmp_path)), tmp_path / "new").checkpoint_bytes == pytest.approx(size, abs=2_000)
    published = run_command("publish", "run@latest", "--to", "out", "--license", "mit")
    assert published.code == 0, published.err
    again = open_model("out", cpu)
    assert torch.equal(model_tensors(again.model)[HEAD], tensors(run, 20)[HEAD])


def test_the_micro_batch_changes_nothing(tmp_path: Path) -> None:
    runs = [run_small(write(tmp_path), name=f"m{size}", micro_batch=size)[0] for size in (2, 8)]
    losses = [[record["loss"] for record in metrics_of(run)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"train": {"untie_head_at": 1.5}}, "untie_head_at = 1.5: must be a number of steps above 0, or a share"),
        ({"train": {"untie_head_at": 3}, "model": {"tied_head": False}}, "needs|model.tied_head = true"),
        ({"train": {"untie_head_at": 3, "spike": "rollback"}}, "could go back behind untie_head_at"),
    ],
)
def test_what_it_cannot_do_is_refused(tables: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_run_config({"data": {"store": "corpus"}, **tables}, where="test")


def test_a_step_that_never_comes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="untie_head_at = 20, but the run has only 20 steps"):
        plan_run(write(tmp_path, at=20))
