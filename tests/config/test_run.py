"""The run file as an object: defaults written out, frozen, its identity, and slots that build."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fromscratch.config import model, train
from fromscratch.config.base import Slot, Table
from fromscratch.config.loading import load_run_config, parse_run_config, to_toml
from fromscratch.config.model import ChunkedHead, GPTConfig, ModelConfig, RMSNorm, RotaryPosition
from fromscratch.config.presets import PRESETS
from fromscratch.config.recurrent import LSTMConfig
from fromscratch.config.reference import reference
from fromscratch.config.run import RunConfig
from fromscratch.config.train import AdamW, Schedule, TrainConfig, WarmupStableDecay
from fromscratch.errors import UsageError
from tests.kinds import registered

from .conftest import WriteRunFile


def run_config(**tables: Any) -> RunConfig:
    """A config with a store, and what else is given."""
    return parse_run_config({"data": {"store": "corpus"}, **tables}, where="test")


def read_again(config: RunConfig) -> RunConfig:
    """Through the TOML text that a run directory keeps."""
    return parse_run_config(tomllib.loads(tomli_w.dumps(config.to_plain())), where="again")


def slot_kinds(base: type[Slot] = Slot) -> Iterator[type[Slot]]:
    """Every slot class that a run file can choose."""
    for kind in base.__subclasses__():
        yield from slot_kinds(kind)
        if "kind" in kind.model_fields:
            yield kind


SLOT_KINDS = list(slot_kinds())


def test_every_default_is_written_out() -> None:
    plain = run_config().to_plain()
    assert plain["train"]["optimizer"] == AdamW().model_dump()
    assert "cautious" not in plain["train"]["optimizer"], (
        "it is younger than many runs, whose identity it must not change"
    )
    assert plain["model"]["norm"] == {"kind": "layernorm", "eps": 1e-5}
    assert plain["data"] == {"store": "corpus", "tokens": "20x", "start_token": 0, "shuffle": False, "epochs": 1}
    assert set(plain) == {"model", "data", "train", "eval"}
    absent = {"preset", "vocab_size", "residual_dtype", "head_dim", "residual", "multi_token"}
    assert set(plain["model"]) == set(GPTConfig.model_fields) - absent
    assert set(plain["train"]) == set(train.TrainConfig.model_fields) - {
        "start_from",
        "patience",
        "report_to",
        "averages",
        "batch_ramp",
        "untie_head_at",
    }


def test_resolved_config_writes_out_what_only_the_store_knows() -> None:
    config = run_config(model={"preset": "laptop-tiny"}).resolved(vocab_size=300, tokens=4096)
    plain = config.to_plain()
    assert (plain["model"]["vocab_size"], plain["data"]["tokens"]) == (300, 4096)
    assert "preset" not in plain["model"]
    assert plain["model"]["embedding_dim"] == 64
    assert read_again(config) == config


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_fill_the_shape_and_yield_to_the_file(preset: str) -> None:
    filled = run_config(model={"preset": preset}).model
    plain = GPTConfig.model_validate(PRESETS[preset])
    assert {name: getattr(filled, name) for name in PRESETS[preset]} == {n: getattr(plain, n) for n in PRESETS[preset]}
    assert run_config(model={"preset": preset, "num_layers": 3}).model.num_layers == 3


ALL_PRESETS = [(table, name) for table in (GPTConfig, LSTMConfig) for name in table.presets]


SHAPE = {"kind", "preset", "num_layers", "num_heads", "embedding_dim", "hidden_dim", "context_length"}


def settings_of(config: Table, above: str = "") -> Iterator[tuple[str, Table, str]]:
    """The key of every mechanism that differs from its default, the table that holds it, and its name there."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value == field.default or name in SHAPE:
            continue
        yield f"{above}{name}", config, name
        if isinstance(value, Slot):
            yield from settings_of(value, f"{above}{name}.")


@pytest.mark.parametrize(("table", "preset"), ALL_PRESETS)
@pytest.mark.parametrize("is_written_out", [False, True])
def test_every_mechanism_of_a_preset_can_be_taken_away(
    table: type[ModelConfig], preset: str, is_written_out: bool, run_file: WriteRunFile
) -> None:
    kind = table.model_fields["kind"].default
    values: dict[str, Any] = {"model": {"kind": kind, "preset": preset}, "data": {"store": "s"}}
    filled = parse_run_config(values, where="test")
    if is_written_out:  # as a base file, or the baseline of a study, may spell it out
        values = filled.resolved(vocab_size=257, tokens=100).to_plain()
    file = run_file(tomli_w.dumps(values))
    for key, holder, name in settings_of(filled.model):
        default = type(holder).model_fields[name].default
        plain = getattr(default, "kind", default)  # settings of a kind are keys of their own
        found: Any = load_run_config(file, [f"model.{key}={to_toml(plain)}"]).model
        for part in key.split("."):
            found = getattr(found, part)
        assert getattr(found, "kind", found) == plain, key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.residual", "scaled"),
        ("model.residual", {"first_input": 0.2}),
        ("model.multi_token", "blocks"),
        ("model.residual_dtype", "bf16"),
        ("model.head.logit_cap", 15.0),
        ("train.start_from", "gpt2"),
        ("train.start_from", {"model": "gpt2", "optimizer": True}),
        ("train.untie_head_at", 0.5),
        ("train.averages", {"ema": 0.9}),
        ("train.batch_ramp", {"start": 32, "increment": 32, "steps": 3}),
        ("train.patience", 3),
    ],
)
def test_what_a_base_file_sets_can_be_taken_away_and_set_again(key: str, value: Any, run_file: WriteRunFile) -> None:
    below = run_file('[data]\nstore = "s"\n[model.head]\nkind = "chunked"\n', "below.toml")
    table, _, name = key.rpartition(".")
    file = run_file(f'base = "below.toml"\n[{table}]\n{name} = {to_toml(value)}\n')
    plain, changed, off = load_run_config(below), load_run_config(file), f"{key}=none"
    assert changed != plain
    assert load_run_config(file, [off]) == plain
    assert load_run_config(file, [off]).identity({}) == plain.identity({})
    assert load_run_config(file, [off, f"{key}={to_toml(value)}"]) == changed


def test_a_table_without_a_kind_changes_settings_of_the_presets_kind() -> None:
    changes: dict[str, Any] = {"norm": {"eps": 1e-4}, "position": {"theta": 500.0}, "head": {"logit_cap": "none"}}
    changed = run_config(model={"preset": "nanochat-like-small", **changes}).model
    assert isinstance(changed, GPTConfig)
    assert changed.norm == RMSNorm(eps=1e-4, scale=False) and changed.position == RotaryPosition(theta=500.0)
    assert changed.head == ChunkedHead()


def test_none_is_a_name_where_a_name_is_wanted() -> None:
    assert run_config(eval={"store": "none"}).eval.store == "none"


def test_preset_in_a_base_file(run_file: WriteRunFile) -> None:
    run_file('[data]\nstore = "s"\n[model]\npreset = "gpt2-large"\n', "below.toml")
    config = load_run_config(run_file('base = "below.toml"\n[model]\ncontext_length = 32\n'))
    assert (config.model.embedding_dim, config.model.context_length) == (1280, 32)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
RATES = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
NUMBERS = st.integers(min_value=1, max_value=2**63 - 1)
TABLES = st.fixed_dictionaries(
    {"data": st.fixed_dictionaries({"store": TEXT}, optional={"tokens": NUMBERS, "start_token": NUMBERS})},
    optional={
        "model": st.fixed_dictionaries(
            {},
            optional={
                "preset": st.sampled_from(sorted(PRESETS)),
                "dropout": st.floats(0, 1, exclude_max=True),
                "attention": st.sampled_from(["sdpa", "explicit"]),
                "init": st.one_of(st.just("torch"), st.fixed_dictionaries({"kind": st.just("gpt2"), "std": RATES})),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "seed": NUMBERS,
                "optimizer": st.fixed_dictionaries({}, optional={"learning_rate": RATES, "eps": RATES}),
                "clip": st.fixed_dictionaries({"kind": st.just("norm")}, optional={"max_norm": RATES}),
                "schedule": st.fixed_dictionaries({"kind": st.just("wsd"), "decay_steps": NUMBERS}),
            },
        ),
        "eval": st.fixed_dictionaries({}, optional={"prompts": st.lists(TEXT), "split": TEXT, "store": TEXT}),
    },
)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_written_and_read_again_it_is_the_same(tables: dict[str, Any]) -> None:
    config = parse_run_config(tables, where="test")
    again = read_again(config)
    assert again.to_plain() == config.to_plain()
    assert again.identity({"data.store": "f"}) == config.identity({"data.store": "f"})


def test_config_is_frozen() -> None:
    config = run_config()
    for table, name in ((config, "train"), (config.train, "seed"), (config.train.optimizer, "beta1")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, name, 1)


def leaves(plain: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of nested tables with its path."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def changed(value: Any) -> Any:
    """Another value of the same type, valid wherever the config has one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) and value else value + 1
    return [*value, "more"] if isinstance(value, list) else f"{value}-other"


def test_identity_knows_everything_but_the_seed_and_the_path_of_the_store() -> None:
    config = run_config(train={"schedule": {"kind": "linear", "min_learning_rate": 1e-9}}).resolved(
        vocab_size=300, tokens=4096
    )
    before = config.identity({"data.store": "f"})
    assert before != config.identity({"data.store": "g"})
    fixed_choices = {"kind", "precision", "decay", "num_heads"}
    tried = 0
    for path, value in leaves(config.to_plain()):
        if path[-1] in fixed_choices:
            continue
        plain = config.to_plain()
        table = plain
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = changed(value) if path[-1] != "embedding_dim" else 2 * value
        same = parse_run_config(plain, where="changed").identity({"data.store": "f"}) == before
        assert same == (path in {("train", "seed"), ("data", "store")}), path
        tried += 1
    assert tried > 30
    for other in ({"precision": "fp32"}, {"clip": "norm"}, {"optimizer": {"decay": "all"}}):
        assert run_config(train=other).identity({"data.store": "f"}) != run_config().identity({"data.store": "f"})


def test_identity_does_not_depend_on_the_order_or_spelling_of_the_file(run_file: WriteRunFile) -> None:
    one = load_run_config(run_file('[data]\nstore = "a"\ntokens = 100\n[train]\nclip = "norm"\nglobal_batch = 4\n'))
    two = load_run_config(
        run_file(
            '[train]\nglobal_batch = 4\n[train.clip]\nmax_norm = 1.0\nkind = "norm"\n[data]\ntokens = 100\nstore="b"'
        )
    )
    assert one.identity({"data.store": "f"}) == two.identity({"data.store": "f"})


def test_whole_numbers_are_rates_too() -> None:
    assert run_config(train={"optimizer": {"weight_decay": 1}}) == run_config(
        train={"optimizer": {"weight_decay": 1.0}}
    )


def test_schedules_say_how_many_steps_they_need() -> None:
    assert WarmupStableDecay(warmup_steps=3, decay_steps=4).min_steps() == 7
    assert train.Constant(warmup_steps=3).min_steps() == 3


def test_the_slots_are_found() -> None:
    assert {model.LayerNorm, model.ExplicitAttention, train.AdamW, train.RaiseNonfinite} <= set(SLOT_KINDS)
    assert len(SLOT_KINDS) >= 16
    assert Schedule not in SLOT_KINDS


@pytest.mark.parametrize("kind", SLOT_KINDS, ids=lambda kind: kind.__name__)
def test_what_a_slot_builds_exists_and_takes_its_fields(kind: type[Slot]) -> None:
    required = {name: 1 for name, field in kind.model_fields.items() if field.is_required()}
    slot = kind(**required)
    module, _, attribute = kind.builds.partition(":")
    target = getattr(importlib.import_module(module), attribute)
    makers = target.__mro__[:-1] if isinstance(target, type) else [target]
    accepted = {name for maker in makers for name in inspect.signature(maker).parameters}
    own = set(kind.model_fields) - {"kind"}
    assert slot.maker().keywords == {name: getattr(slot, name) for name in own}
    if isinstance(slot, Schedule):
        own = {"min_factor" if name == "min_learning_rate" else name for name in own}
    assert own <= accepted


def test_slots_build_with_their_fields_and_the_context() -> None:
    clip = train.ClipByNorm(max_norm=2.0).build()
    assert clip.max_norm == 2.0
    factor = train.Linear(warmup_steps=0, min_learning_rate=0.2).rate_factor(1.0)(step=5, num_steps=10)
    assert factor == pytest.approx(0.6)


class Tiger(Slot):
    """One more optimiser, which exists in this test alone."""

    builds: ClassVar[str] = "fromscratch.optim.adamw:build_adamw"
    kind: Literal["tiger"] = "tiger"
    learning_rate: float = 1e-4
    speed: float = 0.9


@pytest.mark.parametrize(
    ("optimizer", "before", "after"),
    [
        ("tiger", 'kind = "tiger": unknown kind, must be one of adamw, muon, lion, sgd', "kind='tiger'"),
        ("tigre", "must be one of adamw, muon, lion, sgd", "must be one of adamw, muon, lion, sgd, tiger"),
        (3, 'must be one of "adamw", "muon", "lion", "sgd", or a table', '"sgd", "tiger", or a table'),
        ({"kind": "adamw", "speed": 1.0}, "speed: unknown key", 'it belongs to kind = "tiger"'),
    ],
)
def test_a_kind_of_a_slot_is_one_more_member_of_its_union(optimizer: Any, before: str, after: str) -> None:
    def told() -> str:
        try:
            return repr(run_config(train={"optimizer": optimizer}).train.optimizer)
        except UsageError as error:
            return str(error)

    assert before in told()
    with registered(TrainConfig, "optimizer", Tiger):
        assert after in told()
        assert "| `tiger` | `learning_rate` (number, `0.0001`)" in reference()
    assert before in told() and "`tiger`" not in reference()


def test_what_must_agree_for_weights_to_fit() -> None:
    settings = GPTConfig().weight_settings()
    assert settings["attention.kind"] == "multi-head" and settings["feedforward.ratio"] == 4
    free: list[dict[str, Any]] = [
        {"attention": "explicit"},
        {"head": "linear"},
        {"init": "torch"},
        {"dropout": 0.5},
        {"preset": "gpt2-small"},
    ]
    for values in free:
        assert GPTConfig.model_validate(values).weight_settings() == settings, values
    for name, value in (
        ("norm", {"eps": 1e-3}),
        ("feedforward", "exact-gelu-mlp"),
        ("num_heads", 6),
        ("tied_head", False),
    ):
        assert GPTConfig.model_validate({name: value}).weight_settings() != settings, name


def test_field_docstrings_reach_the_schema() -> None:
    described = GPTConfig.model_json_schema()["properties"]["dropout"]["description"]
    assert "0 is off" in described


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"train": {"optimizer": {"kind": "sgd", "nesterov": True, "momentum": 0.0}}}, "needs momentum above 0"),
        ({"model": {"position": {"kind": "rope", "factor": 2.0}}}, "factor and trained_context need scaling"),
        ({"model": {"position": {"kind": "rope", "scaling": "yarn"}}}, '"yarn" needs factor, or trained_context'),
        (
            {"model": {"position": {"kind": "rope", "scaling": "ntk", "trained_context": 1024}}},
            "is not below context_length = 1024, so scaling changes nothing",
        ),
        ({"model": {"attention": {"kind": "sdpa", "key_value_heads": 5}}}, "does not divide num_heads = 12"),
        ({"model": {"position": "rope", "num_heads": 4, "embedding_dim": 12}}, "needs an even number of channels"),
    ],
)
def test_settings_that_do_not_fit_or_have_no_effect_are_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        run_config(**tables)
