"""Relative paths in run files start where they are written; a run is identified by the content behind them."""

import shutil
from pathlib import Path

import pytest
import tomli_w

from fromscratch.errors import DataError, UsageError
from fromscratch.runs.directory import RunDirectory
from fromscratch.session import plan as plans
from fromscratch.session.plan import PlannedRun, plan_run
from tests.small import SMALL_RUN, make_store, run_small, write_run_file


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base file with its stores in a folder ``shared``; ``mine``, beside it, holds other stores of the same names."""
    for folder, seed in (("shared", 0), ("mine", 5)):
        make_store(tmp_path / folder / "store", seed=seed)
        make_store(tmp_path / folder / "held-out", seed=seed + 1)
    monkeypatch.chdir(tmp_path)
    return write_run_file(tmp_path / "shared", "base", eval={"store": "held-out"})


def child(base: Path, text: str = "") -> Path:
    """A run file in ``mine`` that names the base."""
    file = base.parent.parent / "mine" / "child.toml"
    file.write_text(f'base = "../shared/base.toml"\n{text}')
    return file


def stores(plan: PlannedRun) -> list[str]:
    """The folders of the training store and of the held-out store."""
    assert plan.eval_store is not None
    return [f"{path.parent.name}/{path.name}" for path in (plan.store.path.resolve(), plan.eval_store.path.resolve())]


def test_paths_of_a_base_start_at_the_base(base: Path) -> None:
    plan = plan_run(child(base))
    assert stores(plan) == ["shared/store", "shared/held-out"]
    assert plan.identity == plan_run(base).identity


def test_paths_of_the_child_start_at_the_child(base: Path) -> None:
    assert stores(plan_run(child(base, '[data]\nstore = "store"\n'))) == ["mine/store", "shared/held-out"]
    assert stores(plan_run(child(base, '[eval]\nstore = "held-out"\n'))) == ["shared/store", "mine/held-out"]


def test_paths_of_the_command_line_start_at_the_run_file_or_at_the_current_folder(base: Path) -> None:
    assert stores(plan_run(child(base), ["data.store=store"])) == ["mine/store", "shared/held-out"]
    assert stores(plan_run(child(base), ["eval.store=shared/store"])) == ["shared/store", "shared/store"]


def test_a_store_that_only_the_child_has_is_not_the_bases(base: Path) -> None:
    shutil.rmtree(base.parent / "store")
    with pytest.raises(DataError, match="no such folder"):
        plan_run(child(base))


def test_the_parent_of_a_base_starts_at_the_base(base: Path) -> None:
    for folder, seed in (("shared", 1), ("mine", 2)):
        file = write_run_file(base.parent.parent / folder, "parent", train={"seed": seed, "schedule": "constant"})
        run_small(file, name="parent", stop_after=1)
    train = {**SMALL_RUN["train"], "schedule": "constant", "start_from": {"model": "runs/parent@latest"}}
    base.write_text(tomli_w.dumps({**SMALL_RUN, "train": train}))
    bare = base.with_name("bare.toml")
    bare.write_text(tomli_w.dumps({**SMALL_RUN, "train": {**train, "start_from": "parent@latest"}}))
    found = plan_run(child(base)).parent
    assert found is not None and "shared" in str(found.loaded.checkpoint.resolve())
    file = child(base, "[train.start_from]\noptimizer = true\n")
    assert plan_run(file).identity != plan_run(base).identity, "the child changes another key of the table"
    kept = plan_run(file).parent
    assert kept is not None and "shared" in str(kept.loaded.checkpoint.resolve()) and kept.with_optimizer
    file.write_text('base = "../shared/bare.toml"\n')
    named = plan_run(file).parent
    assert named is not None and "shared" in str(named.loaded.checkpoint.resolve())
    own = plan_run(child(base, '[train]\nstart_from = "runs/parent@latest"\n')).parent
    assert own is not None and "mine" in str(own.loaded.checkpoint.resolve())


def test_another_spelling_of_the_paths_is_the_same_run(base: Path) -> None:
    run_small(base, stop_after=3)
    before = RunDirectory(base.parent / "runs" / "run").config.read_bytes()
    absolute = [f"{key}={base.parent / name}" for key, name in (("data.store", "store"), ("eval.store", "held-out"))]
    assert plan_run(base, absolute).identity == plan_run(base).identity
    assert run_small(base, stop_after=5, overrides=absolute)[1].step == 5
    assert RunDirectory(base.parent / "runs" / "run").config.read_bytes() == before
    other = [f"eval.store={base.parent.parent / 'mine' / 'held-out'}"]
    assert plan_run(base, other).identity != plan_run(base).identity
    with pytest.raises(DataError, match="belongs to another run"):
        run_small(base, overrides=other)


def test_another_spelling_of_the_parent_is_the_same_run(tmp_path: Path) -> None:
    run_small(write_run_file(tmp_path), name="parent", stop_after=2)
    train = {**SMALL_RUN["train"], "schedule": "constant", "start_from": "runs/parent@latest"}
    file = write_run_file(tmp_path, "child", train=train)
    run_small(file, name="child", stop_after=2)
    absolute = f"train.start_from={tmp_path / 'runs' / 'parent' / 'checkpoints' / 'step-00000002'}"
    assert run_small(file, name="child", stop_after=4, overrides=[absolute])[1].step == 4


def test_before_the_first_checkpoint_another_parent_is_refused(tmp_path: Path) -> None:
    run_small(write_run_file(tmp_path), name="parent", stop_after=2)
    file = write_run_file(tmp_path, "child", train={"schedule": "constant", "start_from": "runs/parent@latest"})
    run, _ = run_small(file, name="child", stop_after=1)
    shutil.rmtree(run.checkpoints / "step-00000001")
    with pytest.raises(UsageError, match=r"train\.start_from\.model: "):
        run_small(file, name="child", overrides=[f"train.start_from={tmp_path / 'runs' / 'parent'}"])


def test_a_run_that_an_earlier_version_identified_by_the_path_of_its_held_out_store_resumes(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(
            plans.PlannedRun,
            "identity",
            property(lambda plan: {"identity": plan.config.identity(plan.objective.identity), "seed": 42}),
        )
        run_small(base, stop_after=3)
    assert run_small(base, stop_after=5)[1].step == 5
    assert run_small(base)[1].outcome == "done"


def test_the_short_form_of_a_parent_merges_with_a_table(tmp_path: Path) -> None:
    run_small(write_run_file(tmp_path), name="parent", stop_after=2)
    train = {**SMALL_RUN["train"], "schedule": "constant"}
    table = write_run_file(tmp_path, "table", train={**train, "start_from": {"model": "nobody", "optimizer": True}})
    short = write_run_file(tmp_path, "short", train={**train, "start_from": "runs/parent@latest"})
    plans = [
        plan_run(table, ["train.start_from=runs/parent@latest"]),
        plan_run(short, ["train.start_from.optimizer=true"]),
    ]
    assert [plan.parent is not None and plan.parent.with_optimizer for plan in plans] == [True, True]
