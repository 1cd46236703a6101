"""F12: a run goes on as it was begun, or with the changes its user allows."""

from pathlib import Path

import pytest

from fromscratch.errors import DataError, UsageError
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.records import read_records
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import plan_run
from fromscratch.session.run import RunSummary, run_training
from tests.small import make_store, run_small, write_run_file


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped at step 6; the tests that follow go on with it, one after the other."""
    file = write_run_file(tmp_path_factory.mktemp("begun"))
    run_small(file, stop_after=6)
    return file


def go_on(file: Path, overrides: list[str], *allowed: str, stop_after: int | None = None) -> RunSummary:
    plan = plan_run(file, overrides)
    path = file.parent / "runs" / "run"
    placement = place_run(plan, RunDirectory(path), MachineOptions(device="cpu"))
    return run_training(plan, path, placement, observers=[], allowed_changes=allowed, stop_after=stop_after)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.global_batch=4", r"train\.global_batch: 8 -> 4"),
        ("train.seed=7", r"train\.seed: 42 -> 7"),
        ("train.optimizer.learning_rate=0.02", r"train\.optimizer\.learning_rate: 0\.01 -> 0\.02"),
        ("train.schedule.warmup_steps=4", r"train\.schedule\.warmup_steps: 3 -> 4"),
        ("data.start_token=16", r"data\.start_token: 0 -> 16"),
        ("model.num_layers=3", r"model\.num_layers: 2 -> 3"),
    ],
)
def test_f12_each_change_is_refused_by_its_key(begun: Path, change: str, told: str) -> None:
    before = (begun.parent / "runs" / "run" / "run.toml").read_bytes()
    with pytest.raises(UsageError, match=rf"{told}(.|\n)*--allow-change"):
        go_on(begun, [change])
    assert (begun.parent / "runs" / "run" / "run.toml").read_bytes() == before


@pytest.mark.parametrize("key", ["model.embedding_dim", "model", "train.optimizer", "train.optimizer.kind", "train"])
def test_f12_what_tensors_depend_on_cannot_be_allowed(begun: Path, key: str) -> None:
    with pytest.raises(UsageError, match="cannot be allowed"):
        go_on(begun, ["model.embedding_dim=32"], key)


def test_f12_a_misspelt_key_is_told(begun: Path) -> None:
    with pytest.raises(UsageError, match=r"--allow-change train\.sed: no such key; did you mean 'train\.seed'\?"):
        go_on(begun, [], "train.sed")


def test_f12_one_allowed_change_does_not_allow_another(begun: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.seed: 42 -> 7"):
        go_on(begun, ["train.seed=7", "train.global_batch=4"], "train.global_batch")


def test_f12_allowed_changes_are_recorded_and_the_run_goes_on(begun: Path) -> None:
    changes = ["train.seed=7", "train.schedule.warmup_steps=4", "data.tokens=1280"]
    summary = go_on(begun, changes, "train.seed", "train.schedule", "data.tokens", stop_after=8)
    assert (summary.step, summary.num_steps) == (8, 10)
    run = RunDirectory(begun.parent / "runs" / "run")
    events = [event for event in read_records(run.events) if event["event"] == "config-changed"]
    assert len(events) == 1 and "train.seed: 42 -> 7" in events[0]["changes"]
    assert "seed = 7" in run.config.read_text()
    assert [record["step"] for record in read_records(run.metrics)] == list(range(1, 9))
    assert go_on(begun, changes).outcome == "done", "the change needs to be allowed once"
    with pytest.raises(UsageError, match=r"data\.tokens: 1280 -> 640"):
        go_on(begun, ["train.seed=7", "train.schedule.warmup_steps=4", "data.tokens=640"])


def test_f12_fewer_steps_than_were_taken_are_refused(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run_small(file, stop_after=6)
    with pytest.raises(UsageError, match=r"a run of 5 steps, but its checkpoint is at step 6"):
        go_on(file, ["data.tokens=640"], "data.tokens")


def test_f12_another_store_can_be_allowed(tmp_path: Path) -> None:
    file = write_run_file(tmp_path)
    run_small(file, stop_after=6)
    (tmp_path / "store").rename(tmp_path / "old-store")
    make_store(tmp_path / "store", seed=9)
    with pytest.raises(DataError, match="belongs to another run"):
        go_on(file, [])
    assert go_on(file, [], "data.store", stop_after=7).step == 7
    assert go_on(file, []).outcome == "done"
