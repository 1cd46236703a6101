"""The run file with ``[model] [data] [train] [eval]``: its resolved values and its identity."""

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fromscratch.config.base import LARGEST_WHOLE_NUMBER, MODEL_SLOT, SLOT, NonNegative, Positive, Slot, Table
from fromscratch.config.model import GPTConfig, HuggingFaceConfig, ModelConfig
from fromscratch.config.recurrent import GRUConfig, LSTMConfig, RNNConfig
from fromscratch.config.train import TrainConfig
from fromscratch.config.tune import Classify, Instruct
from fromscratch.errors import UsageError

TOKEN_BUDGET = re.compile(r"([1-9][0-9]{0,8}(\.[0-9]{1,9})?|0\.[0-9]{0,8}[1-9][0-9]{0,8})x|all")


def _check_budget(value: Any) -> Any:
    """Runs before the union is validated, so that a wrong value gives one error and not one per branch."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_WHOLE_NUMBER
    if not is_count and not (isinstance(value, str) and TOKEN_BUDGET.fullmatch(value)):
        raise ValueError('must be a number of tokens above 0, a multiple of the parameters such as "20x", or "all"')
    return value


TokenBudget = Annotated[int | str, BeforeValidator(_check_budget)]


class DataConfig(Table):
    """The training tokens: where they are, how many are used, in which order."""

    store: str = Field(min_length=1)
    """A token store: a folder, relative to the file that names it or to the current folder, or ``hf://owner/name``.
    With ``[tune]``, a file of records."""
    tokens: TokenBudget = "20x"
    """Training budget: a number of tokens, ``"20x"`` for 20 per parameter (Hoffmann et al. 2022), or ``"all"``."""
    start_token: NonNegative = 0
    """Index of the first token in the training split."""
    shuffle: bool = False
    """Whether to shuffle the sequences with the run's seed, in each epoch differently."""
    epochs: Positive = 1
    """How often the training split may be read; a larger budget of tokens is an error."""
    document_mask: bool | None = None
    """Whether attention, in training and evaluation, stays within a document, which the end-of-text token ends.
    Default: no."""
    validation_share: float | None = Field(default=None, ge=0.0, lt=1.0)
    """For recurrent models, which read the text in lanes, one for each sequence of a batch: share of every lane, at
    its end, that is held out for evaluation. Default: 0.1 where the store holds out no text, otherwise 0, which
    evaluates on ``[eval]``."""


class EvalConfig(Table):
    """Held-out loss and sampled text during training."""

    store: str | None = None
    """Token store to evaluate on; by default the training store."""
    split: str = "validation"
    start: NonNegative = 0
    """Index of the first token to evaluate."""
    tokens: Positive = 65_536
    """Maximum number of tokens to evaluate; a shorter split is used completely."""
    weights: Literal["raw", "ema", "tail"] = Field(default="raw", exclude_if=lambda name: name == "raw")
    """Whose held-out loss decides which checkpoint is the best, and which weights are sampled and opened where a
    command names only the run: those of training (``raw``), or an average of ``[train] averages``."""
    prompts: tuple[str, ...] = Field(default=("Every effort moves you",), strict=False)
    """Prompts of the sampled texts."""
    sample_tokens: Positive = 48
    """Tokens sampled after each prompt."""


class RunConfig(Table):
    """The content of a run file: everything that determines the result, nothing about the machine."""

    model: Annotated[GPTConfig | LSTMConfig | GRUConfig | RNNConfig | HuggingFaceConfig, MODEL_SLOT] = GPTConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    tune: Annotated[Instruct | Classify | None, SLOT] = None
    """Fine-tuning; without it, the run learns the next token of a token store."""

    @model_validator(mode="after")
    def _evaluates_weights_that_exist(self) -> Self:
        if self.eval.weights != "raw" and getattr(self.train.averages, self.eval.weights, None) is None:
            raise ValueError(
                f'eval.weights = "{self.eval.weights}" needs train.averages.{self.eval.weights}; set it, or remove '
                "eval.weights"
            )
        return self

    @model_validator(mode="after")
    def _unties_a_tied_head(self) -> Self:
        if self.train.untie_head_at is not None and (self.tune or not getattr(self.model, "tied_head", False)):
            raise ValueError(
                "train.untie_head_at is for pre-training a model with model.tied_head = true; set that, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _ramps_where_batches_may_differ(self) -> Self:
        if self.tune and self.train.batch_ramp:
            raise ValueError("train.batch_ramp is for pre-training; remove it from a run with [tune]")
        if self.model.reads_lanes and self.train.batch_ramp:
            raise ValueError("train.batch_ramp: a recurrent model reads a lane per sequence of a batch; remove it")
        return self

    @model_validator(mode="after")
    def _masks_documents_where_there_are_several(self) -> Self:
        if self.data.document_mask and self.tune:
            raise ValueError("data.document_mask = true: [tune] has one record in a sequence; remove it")
        if self.data.document_mask and not self.model.can_separate_documents:
            raise ValueError(
                f"data.document_mask = true: a model of kind {self.model.kind!r} has no such mask; remove it"
            )
        return self

    def resolved(self, *, vocab_size: int, tokens: int) -> Self:
        """Returns a copy with the values that depend on the store and the model: vocabulary size and token budget."""
        model = self.model.model_copy(update={"preset": None, "vocab_size": vocab_size})
        data = self.data.model_copy(update={"tokens": tokens})
        return self.model_copy(update={"model": model, "data": data})

    def check_is_pretraining(self, where: str) -> None:
        """Raises UsageError for a run that tunes a model, which has no token store to measure or count."""
        if self.tune:
            raise UsageError(f"{where}: [tune] is for 'fromscratch train'; plan and bench know pre-training only")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.tune and self.train.patience is not None:
            raise ValueError("train.patience: a run with [tune] has tune.patience; set that one")
        is_read_in_lanes = self.model.reads_lanes and not self.tune
        share = self.data.validation_share
        if share is not None and not is_read_in_lanes:
            raise ValueError("data.validation_share: only recurrent models read lanes; remove it")
        if is_read_in_lanes and self.data.shuffle:
            raise ValueError("data.shuffle: a recurrent model reads its lanes in order; remove it")
        if share and any(getattr(self.eval, key) != getattr(EvalConfig(), key) for key in ("store", "split", "start")):
            raise ValueError(
                f"data.validation_share = {share} evaluates on the ends of the lanes; remove eval.store, eval.split "
                "and eval.start, or set it to 0"
            )
        return self

    @property
    def patience(self) -> int:
        """Evaluations in a row without a lower held-out loss that end the run; 0 is off."""
        return (self.tune.patience if self.tune else self.train.patience) or 0

    @property
    def best_measure(self) -> str:
        """The tokens that a run's best loss is measured on."""
        if not self.train.evaluate_every:
            return "training tokens since the previous checkpoint"
        if self.tune:
            return f"the validation part of {self.data.store}"
        if self.data.validation_share:
            return f"at most {self.eval.tokens:,} tokens at the ends of the lanes of {self.data.store}"
        store = f" of {self.eval.store}" if self.eval.store else ""
        start = f", from token {self.eval.start:,}" if self.eval.start else ""
        return f"at most {self.eval.tokens:,} tokens of split '{self.eval.split}'{store}{start}"

    def to_plain(self) -> dict[str, Any]:
        """Returns nested dictionaries with every default, without keys that are None."""
        return self.model_dump(mode="json", exclude_none=True)

    def identity(self, by_content: dict[str, Any]) -> str:
        """A hash of the science: every resolved value except the seed.

        Args:
            by_content: values that replace those of the file, by key (``data.store``): what the file only names
                is identified by its content.
        """
        plain = self.to_plain()
        for key, value in by_content.items():
            table, _, name = key.rpartition(".")
            plain[table][name] = value
        del plain["train"]["seed"]
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def parse_model(values: Any) -> ModelConfig:
    """A ``[model]`` table by itself, of any kind. Raises pydantic's ValidationError."""
    return RunConfig.model_validate({"model": values, "data": {"store": "none"}}).model


def changed_values(table: Table, above: str = "") -> dict[str, Any]:
    """Maps key paths to values that differ from the defaults; a slot gives its kind and its changed fields."""
    changes: dict[str, Any] = {}
    for name, field in type(table).model_fields.items():
        value, key = getattr(table, name), f"{above}{name}"
        if value is None or value == field.default:
            continue
        if isinstance(value, Slot):
            changes[key] = {"kind": type(value).model_fields["kind"].default, **changed_values(value)}
        elif isinstance(value, Table):
            changes |= changed_values(value, f"{key}.")
        else:
            changes[key] = list(value) if isinstance(value, tuple) else value
    return changes
