"""Reads a run file and opens what it names: store, tokenizer, objective, parent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fromscratch.config.loading import load_run_file
from fromscratch.config.run import RunConfig
from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenStore
from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.records import RecordsFile
from fromscratch.formats.stores import open_named_store, tokenizer_of
from fromscratch.hub.names import has_hub_prefix
from fromscratch.models.costs import ModelCosts, model_costs
from fromscratch.models.language_model import LanguageModel
from fromscratch.session.parent import Parent, open_parent
from fromscratch.session.samples import text_sampler
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import TokenSlice
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Objective

TRAINING_SPLIT, VALIDATION_SPLIT = "train", "validation"
MAX_UINT16_IDS = 1 << 16


@dataclass(frozen=True)
class PlannedRun:
    """A resolved and checked run file and the objects it names. Planning writes no files."""

    config: RunConfig
    store: TokenStore | RecordsFile
    """What ``[data] store`` names."""
    tokenizer: Tokenizer
    objective: Objective
    num_steps: int
    costs: ModelCosts
    folder: Path
    """The run file's folder."""
    parent: Parent | None = None
    """The model whose weights the run continues from."""
    eval_store: TokenStore | None = None
    """The store that ``[eval] store`` names."""
    notices: tuple[str, ...] = ()
    """What was decided for the user."""
    adapt: Callable[[LanguageModel], None] | None = None
    """Changes the model's modules for fine-tuning, before its weights are set."""
    longest_sequence: int | None = None
    """Tokens of the longest training sequence; None is the model's context."""
    attachments: dict[str, str] = field(default_factory=dict)
    """Further text files of the run, by their path in its folder."""

    def tokens_before(self, step: int) -> int:
        """Tokens of all steps before a step, which counts from 0."""
        train = self.config.train
        return train.batch_sizes.before(step) * self.objective.tokens_per_step // train.global_batch

    def parameters_at(self, step: int) -> int:
        """Parameters of the model that has taken ``step`` steps."""
        train, untie_step = self.config.train, self.config.train.untie_step(self.num_steps)
        if untie_step is None or step <= untie_step:
            return self.costs.parameters
        return model_costs(train.last_model(self.config.model)).parameters

    def store_names(self) -> dict[str, str]:
        """Returns where the run's stores are on this machine, by key of the run file."""
        opened = {"data.store": (self.config.data.store, self.store)}
        if self.eval_store and self.config.eval.store:
            opened["eval.store"] = (self.config.eval.store, self.eval_store)
        return {
            key: name if has_hub_prefix(name) else str(store.path.resolve()) for key, (name, store) in opened.items()
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Identifies the result of the run: the hash of the resolved config, and the seed."""
        return self.identities_of(self.config)[0]

    def identities_of(self, config: RunConfig) -> list[dict[str, Any]]:
        """Returns the identity of a config with this run's stores and parent, and those of earlier versions.

        Earlier versions identified ``[eval] store`` by its path, not by its content.
        """
        by_content = dict(self.objective.identity)
        if self.parent:
            by_content["train.start_from"] = self.parent.identity()
        found = [by_content]
        if self.eval_store and config.eval.store:
            found.insert(0, {**by_content, "eval.store": self.eval_store.fingerprint})
        return [{"identity": config.identity(contents), "seed": config.train.seed} for contents in found]


def plan_run(file: Path, overrides: list[str] | None = None) -> PlannedRun:
    """Reads a run file and opens everything it names.

    Raises:
        UsageError: the file is invalid, or contradicts the store.
        DataError: the store is missing, damaged or too small.
    """
    run_file = load_run_file(file, overrides)
    config, folders = run_file.config, run_file.folders
    if config.tune:
        from fromscratch.session.tuning import plan_tuning  # which imports this module

        return plan_tuning(config, folders, str(file))
    store = open_named_store(config.data.store, folders["data.store"])
    tokenizer = tokenizer_of(store)
    vocab_size = resolve_vocabulary(config, store, tokenizer, file)
    costs = model_costs(config.model.model_copy(update={"vocab_size": vocab_size}))
    sequences = training_sequences(config, store)
    num_steps = planned_steps(config.data.tokens, sequences, costs)
    tokens = sequences.sizes.before(num_steps) * sequences.context_length
    config = config.resolved(vocab_size=vocab_size, tokens=tokens)
    config, notices = _without_validation(config, store)
    eval_store = open_named_store(config.eval.store, folders["eval.store"]) if config.eval.store else None
    held_out = held_out_slice(config, eval_store or store, tokenizer) if config.train.evaluate_every else None
    sampler = text_sampler(tokenizer, config.eval, seed=config.train.seed)
    objective = NextToken(sequences, config.train.seed, store.fingerprint, held_out, sampler)
    check_schedule(config, num_steps, str(file))
    where = folders.get("train.start_from", file.parent)
    parent = open_parent(config.train.start_from, config.model, tokenizer, where, file)
    return PlannedRun(config, store, tokenizer, objective, num_steps, costs, file.parent, parent, eval_store, notices)


def resolve_vocabulary(config: RunConfig, store: TokenStore, tokenizer: Tokenizer, file: Path) -> int:
    """Returns the model's number of token ids: the run file's, else the tokenizer's.

    Raises:
        UsageError: it is too small for the tokenizer, or too large for the store.
    """
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"{file}: model.vocab_size = {vocab_size} is below the {tokenizer.vocab_size} ids of the store's "
            f"tokenizer {tokenizer.name}; raise it, or remove it"
        )
    if store.manifest.dtype == "uint16" and vocab_size > MAX_UINT16_IDS:
        raise UsageError(
            f"{file}: model.vocab_size = {vocab_size}, but the tokens of {store.path} are uint16, at most "
            f"{MAX_UINT16_IDS - 1}; remove it, or prepare the text with a tokenizer of {vocab_size} ids (its store "
            "is uint32)"
        )
    return vocab_size


def training_sequences(config: RunConfig, store: TokenStore) -> SequenceBatches:
    """Returns the training sequences of a run, by step."""
    return SequenceBatches(
        store.split(TRAINING_SPLIT),
        context_length=config.model.context_length,
        global_batch=config.train.global_batch,
        start_token=config.data.start_token,
        epochs=config.data.epochs,
        shuffle_seed=config.train.seed if config.data.shuffle else None,
        ramp=config.train.batch_ramp,
    )


def _without_validation(config: RunConfig, store: TokenStore) -> tuple[RunConfig, tuple[str, ...]]:
    """Switches evaluation off where the store holds nothing out; returns the config and a notice."""
    split = store.manifest.splits.get(VALIDATION_SPLIT)
    is_wanted = config.train.evaluate_every and config.eval.store is None and config.eval.split == VALIDATION_SPLIT
    if not is_wanted or (split is not None and split.tokens > 1):  # one token predicts nothing
        return config, ()
    train = config.train.model_copy(update={"evaluate_every": 0})
    notice = (
        f"store {store.path} holds out no text, so nothing is evaluated, and the best checkpoint is the one with the "
        "lowest training loss"
    )
    return config.model_copy(update={"train": train}), (notice,)


def planned_steps(budget: int | str, sequences: SequenceBatches, costs: ModelCosts) -> int:
    """Returns the optimiser steps of a token budget. Raises DataError if the store holds too few tokens."""
    if budget == "all":
        if sequences.max_steps == 0:
            sequences.steps_for(1)  # raises DataError, because the store is too small
        return sequences.max_steps
    return sequences.steps_for(budget_tokens(budget, costs.parameters))


def budget_tokens(budget: int | str, parameters: int) -> int:
    """Returns the tokens of a budget that is a number or a multiple of the parameters (``20x``)."""
    return budget if isinstance(budget, int) else round(float(budget.removesuffix("x")) * parameters)


def check_schedule(config: RunConfig, num_steps: int, where: str) -> None:
    """Raises UsageError if the schedule, or what happens part-way, needs more steps than the run has."""
    needed = config.train.schedule.min_steps()
    untie_step = config.train.untie_step(num_steps)
    if untie_step is not None and untie_step >= num_steps:
        raise UsageError(
            f"{where}: train.untie_head_at = {config.train.untie_head_at}, but the run has only {num_steps} steps; "
            "lower it, or remove it"
        )
    if needed > num_steps:
        raise UsageError(
            f"{where}: train.schedule needs {needed} steps (warmup_steps and decay_steps together), but the run has "
            f"only {num_steps} ({config.data.tokens:,} tokens); lower them, or raise data.tokens or data.epochs"
        )


def held_out_slice(config: RunConfig, store: TokenStore, tokenizer: Tokenizer) -> TokenSlice:
    """Opens the slice that ``[eval]`` names. Raises DataError if it is missing, empty, or of another tokenizer."""
    settings = config.eval
    check_same_tokenizer(store, tokenizer)
    return TokenSlice.of(store.split(settings.split), start=settings.start, tokens=settings.tokens)


def check_same_tokenizer(store: TokenStore, tokenizer: Tokenizer) -> None:
    """Raises DataError if a store was prepared with another tokenizer than the model's."""
    found = store.manifest.tokenizer
    if found["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"store {store.path}: its tokenizer is {found['name']} ({found['vocab_size']} ids), but the model's is "
            f"{tokenizer.name} ({tokenizer.vocab_size} ids); prepare the text with the model's tokenizer"
        )
