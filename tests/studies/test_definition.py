"""Study files: what they say, and what is refused."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fromscratch.config.loading import load_run_config
from fromscratch.errors import UsageError
from fromscratch.models.costs import model_costs
from fromscratch.studies.definition import CONTROL, Study, load_study
from fromscratch.studies.single import write_study
from tests.conftest import REPOSITORY

INTERVENTIONS: dict[str, Any] = {
    "no-dropout": {"note": "off", "model": {"dropout": 0.0}},
    "clipping": {"train": {"clip": {"kind": "norm", "max_norm": 3.5}}},
    "same-again": {},
}


def study(folder: Path, **keys: Any) -> Study:
    (folder / "baseline.toml").write_text('[data]\nstore = "store"\n')
    values = {"baseline": "baseline.toml", "seeds": [1, 2, 3], "interventions": INTERVENTIONS, **keys}
    (folder / "study.toml").write_text(
        tomli_w.dumps({key: value for key, value in values.items() if value is not None})
    )
    return load_study(folder / "study.toml")


def test_arms_changes_and_seeds(tmp_path: Path) -> None:
    found = study(tmp_path, stacks={"both": {"of": ["no-dropout", "clipping"]}})
    arms = {arm.name: arm for arm in found.all_arms}
    assert list(arms) == [CONTROL, "no-dropout", "clipping", "same-again", "both"]
    assert arms["no-dropout"].changes == ("model.dropout: 0.1 -> 0.0",) and arms["no-dropout"].note == "off"
    assert arms["both"].changes == (*arms["no-dropout"].changes, *arms["clipping"].changes)
    assert arms["both"].members == ("no-dropout", "clipping") and arms["both"].seeds == (1, 2, 3)
    assert arms[CONTROL].seeds == (1, 2, 3, 4, 5, 6)  # the square root of four arms times three
    assert not set(arms["same-again"].seeds) & set(arms[CONTROL].seeds)  # equal seeds would be the same runs


def test_added_seeds_move_no_run_to_another_arm(tmp_path: Path) -> None:
    before = study(tmp_path)
    after = load_study(tmp_path / "study.toml", added_seeds=(4, 5))
    for old, new in zip(before.all_arms, after.all_arms, strict=True):
        assert set(old.seeds) <= set(new.seeds)
    taken = [(arm.name, seed) for arm in after.all_arms if not arm.changes for seed in arm.seeds]
    assert len({seed for _, seed in taken}) == len(taken)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baseline": "gone.toml"}, "gone.toml: no such run file"),
        ({"seeds": [1, 1]}, "each seed may be listed once"),
        ({"seeds": []}, "seeds"),
        ({"seeds": 0}, "a number of seeds from 1 to 1,000"),
        ({"seeds": 1_001}, "a number of seeds from 1 to 1,000"),
        ({"design": "peeking"}, "design"),
        ({"interventions": {}}, "interventions"),
        ({"interventions": {"x": {"model": {"droput": 0.0}}}}, "study.toml: x: .*dropout"),
        ({"interventions": {"x": {"train": {"seed": 3}}}}, "interventions.x sets train.seed"),
        ({"interventions": {"baseline": {}}}, "arm 'baseline'"),
        ({"interventions": {"a b": {}}}, "arm 'a b'"),
        ({"stacks": {"s": {"of": ["nothing"]}}}, "no such intervention; there are no-dropout, clipping, same-again"),
        ({"stacks": {"clipping": {"of": ["no-dropout"]}}}, "names both an intervention and a stack"),
        ({"early_stop": {"margin": 0.1, "after": 0.2}}, "early_stop.after"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        study(tmp_path, **keys)


def test_members_of_a_stack_that_touch_one_key_clash_unless_they_are_ordered(tmp_path: Path) -> None:
    two = {"a": {"train": {"clip": {"kind": "none"}}}, "b": {"train": {"clip": {"kind": "norm", "max_norm": 2.0}}}}
    with pytest.raises(UsageError, match=r"stacks.s: 'a' and 'b' both set train.clip; .* ordered = true"):
        study(tmp_path, interventions=two, stacks={"s": {"of": ["a", "b"]}})
    ordered = study(tmp_path, interventions=two, stacks={"s": {"of": ["a", "b"], "ordered": True}})
    assert any("2.0" in change for change in ordered.arms[-1].changes)


@pytest.mark.parametrize(
    "file", sorted(REPOSITORY.glob("studies/*/interventions.toml")), ids=lambda path: str(path.parent.name)
)
def test_shipped_studies_are_valid_and_every_arm_changes_what_it_says(file: Path) -> None:
    for arm in load_study(file).arms:
        assert arm.changes or arm.name == "same-again"


def test_a_single_change_is_a_study_file_of_its_own(tmp_path: Path) -> None:
    baseline = tmp_path / "base.toml"
    baseline.write_text('[data]\nstore = "store"\n')
    runs = tmp_path / "runs"
    changes = ["train.optimizer.learning_rate=1e-3", "train.optimizer.weight_decay=0.0"]
    file = write_study(baseline, changes, 2, None, runs)
    assert file == runs / "base-learning_rate-1e-3-weight_decay-0.0" / "base-learning_rate-1e-3-weight_decay-0.0.toml"
    assert len(load_study(file).arms[0].changes) == 2
    assert load_study(write_study(baseline, changes, 4, None, runs)).config.seeds == (42, 43, 44, 45)
    with pytest.raises(UsageError, match="holds another change"):
        write_study(baseline, ["model.dropout=0.0"], 2, file.stem, runs)


SHIPPED = sorted(
    path for path in (REPOSITORY / "studies").rglob("*.toml") if "baseline" in tomllib.loads(path.read_text("utf-8"))
)
GPT2_SMALL: dict[str, set[str]] = {
    CONTROL: set(),
    "same-again": set(),
    "clipping-3.5": {"train.clip.max_norm: None -> 3.5"},
    "clipping-1": {"train.clip.max_norm: None -> 1.0"},
    "no-dropout": {"model.dropout: 0.1 -> 0.0"},
    "attention-bias": {"model.attention_bias: False -> True"},
    "tied-head": {"model.tied_head: False -> True"},
    "cosine": {"train.optimizer.learning_rate: 0.0004 -> 0.0014"},
    "weight-decay-0.01": {"train.optimizer.weight_decay: 0.1 -> 0.01"},
    "decay-matrices": {"train.optimizer.decay: 'all' -> 'matrices'"},
    "fp32": {"train.precision: 'bf16' -> 'fp32'"},
    "gpt2-init": {"model.init.kind: 'torch' -> 'gpt2'"},
    **{f"batch-{size}": {f"train.global_batch: 96 -> {size}"} for size in (6, 24, 192, 512)},
    "all": {"model.dropout: 0.1 -> 0.0", "train.optimizer.decay: 'all' -> 'matrices'"},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_studies_load_and_every_arm_changes_what_it_says(path: Path) -> None:
    found = load_study(path)
    arms = {arm.name: arm for arm in found.all_arms}
    assert all(arm.changes for name, arm in arms.items() if name not in (CONTROL, "same-again"))
    if path.parent.name == "gpt2-small":
        assert arms.keys() == GPT2_SMALL.keys()
        assert all(GPT2_SMALL[name] <= set(arm.changes) for name, arm in arms.items())
        assert sum(len(arm.seeds) for arm in arms.values()) == 60  # as its README says


def test_the_full_size_arms_read_the_same_tokens() -> None:
    arms = load_study(REPOSITORY / "studies" / "gpt2-small" / "interventions.toml").all_arms
    for arm in arms:
        config = load_run_config(REPOSITORY / "studies" / "gpt2-small" / "baseline.toml", list(arm.overrides))
        model = config.model.model_copy(update={"vocab_size": 50_257})
        tokens_per_step = config.train.global_batch * model.context_length
        tokens = config.data.tokens
        if tokens == "20x":
            tokens = 20 * model_costs(model).parameters
        rounded = -(-int(tokens) // tokens_per_step) * tokens_per_step
        assert rounded == pytest.approx(3_260_252_160, rel=2e-4), arm.name
