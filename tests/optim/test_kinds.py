"""The seam of optimisers: a composite named by a run file is scheduled, held, saved and resumed as one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fromscratch.config.train import TrainConfig
from fromscratch.runs.records import read_records
from fromscratch.session.disk import plan_disk
from fromscratch.session.plan import plan_run
from tests.kinds import registered
from tests.optim.toy_composite import ToyComposite
from tests.small import SMALL_RUN, run_small, write_run_file
from tests.training.test_resume import assert_same_end


@pytest.fixture(scope="module", autouse=True)
def toy_kind() -> Iterator[None]:
    with registered(TrainConfig, "optimizer", ToyComposite):
        yield


def write(folder: Path, precision: str, **optimizer: Any) -> Path:
    train = {**SMALL_RUN["train"], "precision": precision, "optimizer": optimizer or {"kind": "toy-composite"}}
    return write_run_file(folder, train=train)


@pytest.mark.parametrize(
    "kind", [{"kind": "muon", "adamw_learning_rate": 0.01, "cautious": True}, {"kind": "lion"}, {"kind": "sgd"}]
)
def test_every_kind_learns_and_resumes_to_the_bit(tmp_path: Path, kind: dict[str, Any]) -> None:
    file = write(tmp_path, "fp32", **{"learning_rate": 0.02 if kind["kind"] != "sgd" else 0.5, **kind})
    untouched, summary = run_small(file, name="untouched")
    assert summary.final_loss is not None and summary.final_loss < 4.8
    run_small(file, name="stopped", stop_after=7)
    assert_same_end(untouched, run_small(file, name="stopped")[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_f10_both_parts_resume_to_the_bit(tmp_path: Path, precision: str) -> None:
    file = write(tmp_path, precision)
    untouched, summary = run_small(file, name="untouched")
    assert summary.final_loss is not None and summary.final_loss < 4.5
    for step in (5, 7):
        run_small(file, name=f"stopped-{step}", stop_after=step)
        assert_same_end(untouched, run_small(file, name=f"stopped-{step}")[0])
    rates = [record["learning_rate"] for record in read_records(untouched.metrics)]
    assert rates[0] == pytest.approx(0.01 / 4) and max(rates) == pytest.approx(0.01)


def test_its_checkpoint_is_foreseen(tmp_path: Path) -> None:
    file = write(tmp_path, "fp32")
    run, _ = run_small(file)
    size = sum(path.stat().st_size for path in (run.checkpoints / "step-00000020").iterdir())
    assert plan_disk(plan_run(file), tmp_path / "new").checkpoint_bytes == pytest.approx(size, abs=2_000)
