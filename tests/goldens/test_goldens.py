"""What an earlier version recorded, computed anew: curves, weights, batches, identities; its run and its store.

The command ``python -m tests.goldens.record`` records all of it anew.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fromscratch.models.dropout import MASK_VERSION
from tests.command import run_command
from tests.goldens.cases import (
    BATCHES,
    CURVES,
    DATA,
    NUM_STEPS,
    RUN_FILES,
    STEP_FIELDS,
    STOPPED_AT,
    STOPPED_CURVE,
    STOPPED_RUN,
    STORE,
    WEIGHTS,
    batches_of,
    curve_of,
    generate_texts,
    hash_weights,
    ids_in_store,
    prepare_store,
    resolve,
    resolve_baseline,
    this_machine,
    train,
    train_curve,
    write_run_file,
)

RELATIVE_TOLERANCES = {"fp32": 1e-5, "bf16": 2e-3}
"""Between processors. Recorded on AVX-512 with bf16 instructions and computed anew without them, with AVX2 and with
SSE, fp32 differed by at most 1.2e-6 and bf16 by at most 4.7e-4, both in the gradient norm."""
VECTORISED = ("AVX2", "AVX512")
"""Capabilities of a processor under which torch draws the same normal numbers to the bit. Without them it rounds
differently: by at most 1.2e-7 for numbers of standard deviation 1."""


def golden(name: str) -> Any:
    """A recorded file of JSON."""
    return json.loads((DATA / name).read_text("utf-8"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with copies of the recorded store and run."""
    shutil.copytree(DATA / STORE, tmp_path / STORE)
    shutil.copytree(DATA / STOPPED_RUN, tmp_path / STOPPED_RUN, symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_same_curve(found: dict[str, Any], case: str, *, first_step: int = 1) -> None:
    """Compares a curve from a step on with the recorded one: to the bit on the recorded machine."""
    recorded = golden("curves.json")
    wanted = recorded["curves"][case]
    assert [one["step"] for one in found["steps"]] == list(range(1, NUM_STEPS + 1))
    assert found["held_out"].keys() == wanted["held_out"].keys() == {"0", "10", "20", "30"}
    if recorded["machine"] == this_machine():
        assert found == wanted
    tolerance = RELATIVE_TOLERANCES[case.partition(",")[0]]
    for one, other in zip(found["steps"][first_step - 1 :], wanted["steps"][first_step - 1 :], strict=True):
        for name in STEP_FIELDS:
            assert one[name] == pytest.approx(other[name], rel=tolerance), f"step {one['step']}: {name}"
    assert found["held_out"] == pytest.approx(wanted["held_out"], rel=tolerance)


@pytest.mark.parametrize("case", CURVES)
def test_curves(folder: Path, case: str) -> None:
    assert_same_curve(train_curve(folder, case), case)


@pytest.mark.parametrize("case", WEIGHTS)
def test_initial_weights(case: str) -> None:
    found, wanted = hash_weights(WEIGHTS[case]), golden("weights.json")[case]
    assert list(found) == list(wanted)
    for name, facts in wanted.items():
        assert found[name]["shape"] == facts["shape"], name
        assert found[name]["first"] == pytest.approx(facts["first"], rel=1e-6, abs=1e-6), name
    if torch.backends.cpu.get_cpu_capability() in VECTORISED:
        assert found == wanted


@pytest.mark.parametrize("case", BATCHES)
def test_batches(folder: Path, case: str) -> None:
    assert batches_of(folder, BATCHES[case]) == golden("batches.json")[case]


@pytest.mark.parametrize("case", RUN_FILES)
def test_resolved_run_and_identity(folder: Path, case: str) -> None:
    assert resolve(folder, case) == golden("identities.json")[case]


def test_resolved_baseline_and_identity(folder: Path) -> None:
    assert resolve_baseline(folder) == golden("identities.json")["baseline"]


def test_the_recorded_store_opens_and_verifies(folder: Path) -> None:
    answer = run_command("data", "verify", STORE)
    assert answer.code == 0, answer.err
    assert ids_in_store(folder / STORE) == golden("store-ids.json")


def test_the_same_text_gives_the_recorded_store(tmp_path: Path) -> None:
    made = prepare_store(tmp_path)
    contents = [
        {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}
        for store in (made, DATA / STORE)
    ]
    now, recorded = (json.loads(content.pop("manifest.json")) for content in contents)
    assert contents[0] == contents[1]
    added = {"text_columns", "files", "altered", "plan_sha256"}  # later versions identify the files by their content
    assert {key: now[key] for key in now.keys() - added} == {key: recorded[key] for key in recorded.keys() - added}


def test_the_recorded_store_is_found_finished_by_the_command_that_made_it(tmp_path: Path) -> None:
    shutil.copytree(DATA / STORE, tmp_path / STORE)
    manifest = (tmp_path / STORE / "manifest.json").read_bytes()
    assert (prepare_store(tmp_path) / "manifest.json").read_bytes() == manifest


def test_the_recorded_run_is_listed_shown_and_verified(folder: Path) -> None:
    listed = run_command("runs", "list", "--runs-dir", folder, "--json")
    assert listed.code == 0, listed.err
    (one,) = json.loads(listed.out)
    assert (one["name"], one["state"], one["step"], one["num_steps"]) == (STOPPED_RUN, "stopped", STOPPED_AT, NUM_STEPS)
    assert one["loss"] == golden("curves.json")["curves"][STOPPED_CURVE]["steps"][STOPPED_AT - 1]["loss"]
    shown = run_command("runs", "show", STOPPED_RUN, "--runs-dir", folder, "--json")
    assert shown.code == 0, shown.err
    facts = json.loads(shown.out)
    assert [one["valid"] for one in facts["checkpoints"]] == [True]
    assert facts["outcomes"].keys() <= {"normal", "clipped"} and sum(facts["outcomes"].values()) == STOPPED_AT
    verified = run_command("runs", "verify", STOPPED_RUN, "--runs-dir", folder, "--json")
    assert verified.code == 0 and json.loads(verified.out)["problems"] == [], verified


def test_the_recorded_checkpoint_generates(folder: Path) -> None:
    found, wanted = generate_texts(folder / STOPPED_RUN), golden("generated.json")
    assert found["likeliest"] == wanted["texts"]["likeliest"]
    assert found["drawn"].startswith("the cat")
    if wanted["machine"] == this_machine():
        assert found == wanted["texts"]


def test_the_recorded_run_goes_on_as_if_never_stopped(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / STOPPED_RUN).rename(folder / "runs" / STOPPED_RUN)
    answer = train(write_run_file(folder / "again.toml", CURVES[STOPPED_CURVE]), STOPPED_RUN)
    assert answer.code == 0, answer.err
    run = folder / "runs" / STOPPED_RUN
    resumed = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    assert [(one["event"], one["step"]) for one in resumed if one["event"] == "resumed"] == [("resumed", STOPPED_AT)]
    assert_same_curve(curve_of(run), STOPPED_CURVE)


def test_a_run_with_the_masks_of_an_earlier_version_continues_and_says_that_they_change(folder: Path) -> None:
    run = folder / "runs" / STOPPED_RUN
    shutil.copytree(DATA / "stopped-run-masks-1", run, symlinks=True)
    answer = train(write_run_file(folder / "again.toml", CURVES[STOPPED_CURVE]), STOPPED_RUN)
    assert answer.code == 0, answer.err
    assert answer.err.count("continues with those of this version") == 1
    events = [json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines()]
    (told,) = [one for one in events if one["event"] == "masks-changed"]
    assert (told["step"], told["earlier"], told["now"]) == (STOPPED_AT, 1, MASK_VERSION)
    manifest = json.loads((run / "checkpoints" / "latest" / "manifest.json").read_text("utf-8"))
    assert manifest["mask_version"] == MASK_VERSION
    found = curve_of(run)["steps"]
    recorded = [
        json.loads(line) for line in (DATA / "stopped-run-masks-1" / "metrics.jsonl").read_text("utf-8").splitlines()
    ]
    assert [one["loss"] for one in found[:STOPPED_AT]] == [one["loss"] for one in recorded]
    again = train(folder / "again.toml", STOPPED_RUN)
    assert again.code == 0 and "those of this version" not in again.err
