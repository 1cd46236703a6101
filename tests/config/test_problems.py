"""What a user who got a run file wrong is told: key path, value, rule, and what was probably meant."""

from pathlib import Path
from typing import Any

import pytest
import typer

from fromscratch.cli.main import app
from fromscratch.config.loading import load_run_config
from fromscratch.config.problems import COMMON_NAMES, MACHINE_OPTIONS, known_keys
from fromscratch.config.run import RunConfig
from fromscratch.errors import EXIT_USAGE, UsageError

from .conftest import WriteRunFile

RATE = "train.optimizer.learning_rate"
BUDGET_RULE = 'must be a number of tokens above 0, a multiple of the parameters such as "20x", or "all"'

B1_UNKNOWN_KEYS = [
    ("train.optimizer.lr_rate=1", "train.optimizer.lr_rate: unknown key; did you mean 'learning_rate'?"),
    ("train.optimizer.lr=1", "train.optimizer.lr: unknown key; did you mean 'learning_rate'?"),
    ("train.lr_rate=1", f"train.lr_rate: unknown key; did you mean '{RATE}'?"),
    ("train.learning_rate=1", f"train.learning_rate: unknown key; did you mean '{RATE}'?"),
    ("train.batch_size=8", "train.batch_size: unknown key; did you mean 'global_batch'?"),
    ("model.n_layer=3", "model.n_layer: unknown key; did you mean 'num_layers'?"),
    ("model.embeding_dim=3", "model.embeding_dim: unknown key; did you mean 'embedding_dim'?"),
    ("modle.dropout=0.1", "modle: unknown key; did you mean 'model'?"),
    ("trian.seed=1", "trian: unknown key; did you mean 'train'?"),
    ("eval.xyzzy=1", "eval.xyzzy: unknown key; known here: prompts, sample_tokens, split, start, store, tokens"),
    ("eval.int=1", "eval.int: unknown key; did you mean 'model.init'?"),
    (
        "train.schedule={kind='linear', decay_steps=3}",
        'train.schedule.decay_steps: unknown key for kind = "linear"; it belongs to kind = "wsd"',
    ),
    (
        "model.preset=gpt-small",
        "nanochat-like-xl, modern-small; did you mean 'gpt2-small'?",
    ),
    ("model.preset=gpt2", "; did you mean 'gpt2-small'?"),
    (
        "model.attention=explict",
        "model.attention.kind = \"explict\": unknown kind, must be one of sdpa, explicit; did you mean 'explicit'?",
    ),
    ("train.schedule=Linear", "; did you mean 'linear'?"),
    ("train.schedule=cosine", "; did you mean 'warmup-cosine'?"),
    ("train.optimizer=adam", 'train.optimizer.kind = "adam": unknown kind, must be one of adamw, muon'),
    ("model.kind=lsmt", 'model.kind = "lsmt": unknown kind, must be one of gpt, lstm, gru, rnn, huggingface'),
    ("train.schedule.kind=[1]", "train.schedule.kind = [1]: unknown kind, must be one of constant, linear"),
]
OTHER_TOOLS = [
    ("model.qkv_bias=true", "model.qkv_bias: unknown key; did you mean 'attention_bias'?"),
    ("model.emb_dim=8", "model.emb_dim: unknown key; did you mean 'embedding_dim'?"),
    ("model.hidden_size=8", "model.hidden_size: unknown key; did you mean 'embedding_dim'?"),
    ("model.tie_word_embeddings=true", "model.tie_word_embeddings: unknown key; did you mean 'tied_head'?"),
    ("train.num_epochs=3", "train.num_epochs: unknown key; did you mean 'data.epochs'?"),
    ("train.max_iters=3", "train.max_iters: unknown key; did you mean 'data.tokens'?"),
    ("train.eval_iters=3", "train.eval_iters: unknown key; did you mean 'eval.tokens'?"),
    ("train.warmup_iters=3", "train.warmup_iters: unknown key; did you mean 'train.schedule.warmup_steps'?"),
    ("train.precision=float32", "; did you mean 'fp32'?"),
    ("train.precision=bfloat16", "; did you mean 'bf16'?"),
    ("train.optimizer=AdamW", "must be one of adamw, muon, lion, sgd; did you mean 'adamw'?"),
    (
        "train.gradient_accumulation_steps=4",
        "train.gradient_accumulation_steps: unknown key, because a run file does not describe the machine; give "
        "--micro-batch on the command line",
    ),
]
B2_WRONG_TYPES = [
    (f'{RATE}="4e-4"', f'{RATE} = "4e-4": must be a number, written without quotes or units'),
    (f"{RATE}=0.001x", f'{RATE} = "0.001x": must be a number, written without quotes or units'),
    (f"{RATE}=true", f"{RATE} = true: must be a number, written without quotes or units"),
    (f"{RATE}=nan", f"{RATE} = nan: must be a finite number"),
    (f"{RATE}=-inf", f"{RATE} = -inf: must be a finite number"),
    (f"{RATE}=1{'0' * 400}", "0...: must be a number"),
    ("train.global_batch=true", "train.global_batch = true: must be a whole number"),
    ("train.global_batch=1.5", "train.global_batch = 1.5: must be a whole number"),
    ("train.global_batch=8.0", "train.global_batch = 8.0: must be a whole number"),
    (f"train.seed=0x{'f' * 5000}", "train.seed = a huge number: must be at most 9223372036854775807"),
    ("model.tied_head=1", "model.tied_head = 1: must be true or false"),
    ("model.tied_head=yes", 'model.tied_head = "yes": must be true or false'),
    ("model='gpt2-small'", 'model = "gpt2-small": must be a table'),
    ("eval=[]", "eval = []: must be a table"),
    ("model.attention=3", 'model.attention = 3: must be one of "sdpa", "explicit", or a table with that kind'),
    ("model.norm=3", 'model.norm = 3: must be one of "layernorm", "rmsnorm", or a table with that kind'),
    ("train.schedule.warmup_steps=3", 'train.schedule: has no kind; it must be one of "constant", "linear"'),
    ("eval.prompts=hello", 'eval.prompts = "hello": must be a list in square brackets'),
    ("eval.prompts=['a', 1]", "eval.prompts[1] = 1: must be text in quotes"),
    ("eval.prompts=[[[1, 2, 3, 4, 5]]]", "eval.prompts[0] = [[...]]: must be text in quotes"),
    ("data.store=2024-01-01", "data.store = 2024-01-01: must be text in quotes"),
    ("data.store.deep=1", "data.store = a table: must be text in quotes"),
    ("train.precision=16", "train.precision = 16: must be one of fp32, tf32, bf16, fp16; did you mean 'fp16'?"),
    ("data.tokens=true", f"data.tokens = true: {BUDGET_RULE}"),
    ('data.tokens="20"', f'data.tokens = "20": {BUDGET_RULE}'),
    ("data.tokens=1.5", f"data.tokens = 1.5: {BUDGET_RULE}"),
    ("data.tokens=20X", f'data.tokens = "20X": {BUDGET_RULE}'),
]
B3_NOT_POSITIVE = [
    ("train.global_batch=0", "train.global_batch = 0: must be greater than 0"),
    ("train.global_batch=-3", "train.global_batch = -3: must be greater than 0"),
    ("model.context_length=0", "model.context_length = 0: must be greater than 0"),
    ("model.num_layers=-1", "model.num_layers = -1: must be greater than 0"),
    ("train.evaluate_every=-1", "train.evaluate_every = -1: must be at least 0"),
    ("train.checkpoint_every=-1", "train.checkpoint_every = -1: must be at least 0"),
    ("train.keep_checkpoints=0", "train.keep_checkpoints = 0: must be greater than 0"),
    ("train.seed=-1", "train.seed = -1: must be at least 0"),
    ("data.tokens=0", f"data.tokens = 0: {BUDGET_RULE}"),
    ("data.tokens=0x", f'data.tokens = "0x": {BUDGET_RULE}'),
    ("data.tokens=0.0x", f'data.tokens = "0.0x": {BUDGET_RULE}'),
    (f"{RATE}=0", f"{RATE} = 0: must be greater than 0"),
    ("model.dropout=1.0", "model.dropout = 1.0: must be less than 1"),
    ("model.dropout=-0.1", "model.dropout = -0.1: must be at least 0"),
    ("data.store=''", 'data.store = "": must not be empty'),
]


def complaint(path: Path, *overrides: str) -> str:
    """What the user is told; the test fails where nothing is wrong."""
    with pytest.raises(UsageError) as caught:
        load_run_config(path, list(overrides))
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


@pytest.mark.parametrize(("override", "sentence"), B1_UNKNOWN_KEYS)
def test_b1_unknown_names_are_refused_with_a_suggestion(run_file: WriteRunFile, override: str, sentence: str) -> None:
    assert sentence in complaint(run_file(), override)


@pytest.mark.parametrize(("override", "sentence"), OTHER_TOOLS)
def test_names_of_other_programs_are_translated(run_file: WriteRunFile, override: str, sentence: str) -> None:
    assert sentence in complaint(run_file(), override)


def test_translations_lead_to_keys_and_options_that_exist() -> None:
    paths = {key.path for key in known_keys(RunConfig)}
    names = paths | {key.name for key in known_keys(RunConfig)}
    assert set(COMMON_NAMES.values()) <= names and not COMMON_NAMES.keys() & names
    train: Any = typer.main.get_command(app)
    options = {option for parameter in train.commands["train"].params for option in parameter.opts}
    assert set(MACHINE_OPTIONS.values()) <= options


@pytest.mark.parametrize(("override", "sentence"), B2_WRONG_TYPES)
def test_b2_wrong_types_are_refused(run_file: WriteRunFile, override: str, sentence: str) -> None:
    assert sentence in complaint(run_file(), override)


@pytest.mark.parametrize(("override", "sentence"), B3_NOT_POSITIVE)
def test_b3_numbers_out_of_range_are_refused(run_file: WriteRunFile, override: str, sentence: str) -> None:
    assert sentence in complaint(run_file(), override)


def test_b4_heads_must_divide_the_embedding(run_file: WriteRunFile) -> None:
    message = complaint(run_file(), "model.num_heads=7")
    assert message.endswith("model: embedding_dim = 768 is not divisible by num_heads = 7; change either")


@pytest.mark.parametrize("schedule", ["linear", "warmup-cosine", "wsd"])
def test_b8_minimum_rate_must_not_exceed_the_highest(run_file: WriteRunFile, schedule: str) -> None:
    decay = ", decay_steps = 5" if schedule == "wsd" else ""
    override = f"train.schedule={{kind = '{schedule}', min_learning_rate = 0.1{decay}}}"
    message = complaint(run_file(), override, f"{RATE}=0.01")
    assert "train: schedule.min_learning_rate = 0.1 must not be above optimizer.learning_rate = 0.01" in message
    assert load_run_config(run_file(), [override, f"{RATE}=0.1"]).train.optimizer.learning_rate == 0.1


def test_every_message_begins_with_the_file(run_file: WriteRunFile) -> None:
    path = run_file()
    assert complaint(path, "train.seed=-1").startswith(f"{path}: train.seed")


def test_a_single_problem_is_one_line(run_file: WriteRunFile) -> None:
    for override, _ in B1_UNKNOWN_KEYS + B2_WRONG_TYPES + B3_NOT_POSITIVE:
        message = complaint(run_file(), override)
        assert "\n" not in message
        assert len(message) < 500


def test_all_problems_are_reported_at_once(run_file: WriteRunFile) -> None:
    path = run_file('[model]\ndropout = 2\n[train]\nseed = "x"\n[train.clip]\nkind = "norm"\nmax_norm = 0\n')
    message = complaint(path)
    assert message.splitlines() == [
        f"{path}: 4 problems",
        "  - model.dropout = 2: must be less than 1",
        "  - data: is required, with store at least",
        '  - train.seed = "x": must be a whole number',
        "  - train.clip.max_norm = 0: must be greater than 0",
    ]


def test_hundreds_of_problems_are_cut_short(run_file: WriteRunFile) -> None:
    lines = complaint(run_file("\n".join(f"x{i} = 1" for i in range(500)))).splitlines()
    assert lines[0].endswith("501 problems")
    assert len(lines) == 22
    assert lines[-1] == "  - and 481 more"


def test_odd_keys_stay_on_one_line(run_file: WriteRunFile) -> None:
    message = complaint(run_file('[data]\nstore = "x"\n"two\\nlines" = 1\n'))
    assert 'data."two\\nlines": unknown key' in message
    assert "\n" not in message
