"""Runs that go on from another model: its weights, its optimiser, its name on the record."""

from pathlib import Path

import pytest
import torch

from fromscratch.errors import UsageError
from fromscratch.formats.model_sources import open_model
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.machine.hardware import find_hardware
from fromscratch.runs.records import read_records
from fromscratch.session.plan import plan_run
from tests.publishing.models import make_loaded
from tests.small import SMALL_RUN, run_small, write_run_file

IMPORTED = {"context_length": 32, "num_heads": 4, "embedding_dim": 32}
CPU = find_hardware("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parent")
    run_small(write_run_file(path), name="parent")
    return path


def child(folder: Path, name: str, start: object, **train: object) -> Path:
    settings = {**SMALL_RUN["train"], "schedule": "constant", "start_from": start, **train}
    return write_run_file(folder, name, train=settings, data={"tokens": 2 * 8 * 16, "start_token": 500})


def test_weights_go_on_and_the_parent_is_on_the_record(folder: Path) -> None:
    parent = open_model(str(folder / "runs" / "parent@latest"), CPU)
    optimizer = {"kind": "adamw", "learning_rate": 1e-12, "weight_decay": 0.0}
    file = child(folder, "still", "runs/parent@latest", optimizer=optimizer)
    run, summary = run_small(file, name="still")
    assert summary.step == 2
    after = open_model(str(run.path), CPU).model
    for (name, one), (_, other) in zip(parent.model.named_parameters(), after.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)
    (record,) = [r for r in read_records(run.events) if r["event"] == "parent"]
    assert (record["weights_sha256"], record["step"]) == (parent.fingerprint(), 20)
    assert run_small(file, name="still")[1].step == 2  # the same command resumes, and asks for the same parent


def test_the_parent_is_part_of_the_identity_by_its_content(folder: Path) -> None:
    one = plan_run(child(folder, "one", "runs/parent@latest")).identity
    same = plan_run(child(folder, "same", str(folder / "runs" / "parent" / "checkpoints" / "step-00000020"))).identity
    other = plan_run(child(folder, "other", "runs/parent@step-15")).identity
    assert one == same and other != one


def test_with_the_optimisers_state(folder: Path) -> None:
    file = child(folder, "whole", {"model": "runs/parent@latest", "optimizer": True})
    weights_only = child(folder, "weights", {"model": "runs/parent@latest"})
    moments = {}
    for path in (file, weights_only):
        run, _ = run_small(path, name=path.stem)
        moments[path.stem] = read_tensors(run.checkpoints / "latest" / "optimizer.safetensors")
    steps = {
        name: {float(t) for key, t in tensors.items() if key.endswith("/step")} for name, tensors in moments.items()
    }
    assert steps == {"whole": {22.0}, "weights": {2.0}}


@pytest.mark.parametrize(
    ("start", "model", "message"),
    [
        ("runs/parent", {"num_layers": 3}, "model.num_layers: 2 in the parent, 3 here"),
        ("./nobody", {}, "no such run or checkpoint"),
        (
            {"model": "imported", "optimizer": True},
            {"context_length": 32, "num_heads": 4, "embedding_dim": 32},
            "no optimiser state",
        ),
    ],
)
def test_parents_that_do_not_fit(folder: Path, start: object, model: dict[str, int], message: str) -> None:
    if not (folder / "imported").exists():
        make_loaded(folder / "imported")
    file = write_run_file(folder, "bad", train={"start_from": start}, model=model)
    with pytest.raises(UsageError, match=message):
        plan_run(file)


def test_from_an_imported_model(folder: Path) -> None:
    if not (folder / "imported").exists():
        make_loaded(folder / "imported")
    file = write_run_file(
        folder,
        "further",
        train={"start_from": "imported", "schedule": "constant"},
        model=IMPORTED,
        data={"tokens": 2 * 8 * 32},
    )
    assert run_small(file, name="further")[1].outcome == "done"


def test_a_model_with_rotary_positions_is_extended_to_a_longer_context(folder: Path) -> None:
    rope = {**SMALL_RUN["model"], "position": "rope"}
    run_small(write_run_file(folder, "short", model=rope), name="short")
    longer = {**rope, "context_length": 32, "position": {"kind": "rope", "scaling": "yarn", "trained_context": 16}}
    train = {**SMALL_RUN["train"], "schedule": "constant", "start_from": "runs/short@latest"}
    data = {"tokens": 2 * 8 * 32, "start_token": 500}
    run, summary = run_small(write_run_file(folder, "long", model=longer, train=train, data=data), name="long")
    assert summary.step == 2 and open_model(str(run.path), CPU).model.context_length == 32
    learned = {**SMALL_RUN["model"], "context_length": 32}
    with pytest.raises(UsageError, match="context_length"):
        plan_run(write_run_file(folder, "learned", model=learned, train={**train, "start_from": "runs/parent@latest"}))
