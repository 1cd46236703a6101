"""Reads a run file and opens what it names: store, tokenizer, objective, parent."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.loading import load_run_config
from fromscratch.config.run import RunConfig
from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenStore
from fromscratch.errors import DataError, UsageError
from fromscratch.formats.stores import open_named_store, tokenizer_of
from fromscratch.models.costs import ModelCosts, model_costs
from fromscratch.session.parent import Parent, open_parent
from fromscratch.session.samples import text_sampler
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import TokenSlice
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Objective

TRAINING_SPLIT = "train"
MAX_UINT16_IDS = 1 << 16


@dataclass(frozen=True)
class PlannedRun:
    """A resolved and checked run file and the objects it names. Planning writes no files."""

    config: RunConfig
    store: TokenStore
    tokenizer: Tokenizer
    objective: Objective
    num_steps: int
    costs: ModelCosts
    folder: Path
    """The run file's folder. Relative paths of stores may start here."""
    parent: Parent | None = None
    """The model whose weights the run continues from."""

    @property
    def identity(self) -> dict[str, Any]:
        """Identifies the result of the run: the hash of the resolved config, and the seed."""
        return self.identity_of(self.config)

    def identity_of(self, config: RunConfig) -> dict[str, Any]:
        """Returns the identity of a config with this run's store and parent."""
        parent = {"train.start_from": self.parent.identity()} if self.parent else {}
        return {"identity": config.identity({**self.objective.identity, **parent}), "seed": config.train.seed}


def plan_run(file: Path, overrides: list[str] | None = None) -> PlannedRun:
    """Reads a run file and opens everything it names.

    Raises:
        UsageError: the file is invalid, or contradicts the store.
        DataError: the store is missing, damaged or too small.
    """
    config = load_run_config(file, overrides)
    store = open_named_store(config.data.store, file.parent)
    tokenizer = tokenizer_of(store)
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
    costs = model_costs(config.model.model_copy(update={"vocab_size": vocab_size}))
    sequences = SequenceBatches(
        store.split(TRAINING_SPLIT),
        context_length=config.model.context_length,
        global_batch=config.train.global_batch,
        start_token=config.data.start_token,
        epochs=config.data.epochs,
        shuffle_seed=config.train.seed if config.data.shuffle else None,
    )
    num_steps = _steps(config.data.tokens, sequences, costs)
    config = config.resolved(vocab_size=vocab_size, tokens=num_steps * sequences.tokens_per_step)
    held_out = held_out_slice(config, store, tokenizer, file.parent) if config.train.evaluate_every else None
    sampler = text_sampler(tokenizer, config.eval, seed=config.train.seed)
    objective = NextToken(sequences, config.train.seed, store.fingerprint, held_out, sampler)
    _check_schedule(config, num_steps, file)
    parent = open_parent(config.train.start_from, config.model, tokenizer, file)
    return PlannedRun(config, store, tokenizer, objective, num_steps, costs, file.parent, parent)


def _steps(budget: int | str, sequences: SequenceBatches, costs: ModelCosts) -> int:
    if budget == "all":
        if sequences.max_steps == 0:
            sequences.steps_for(1)  # raises DataError, because the store is too small
        return sequences.max_steps
    tokens = budget if isinstance(budget, int) else round(float(budget.removesuffix("x")) * costs.parameters)
    return sequences.steps_for(tokens)


def _check_schedule(config: RunConfig, num_steps: int, file: Path) -> None:
    needed = config.train.schedule.min_steps()
    if needed > num_steps:
        raise UsageError(
            f"{file}: train.schedule needs {needed} steps (warmup_steps and decay_steps together), but the run has "
            f"only {num_steps} ({config.data.tokens:,} tokens); lower them, or raise data.tokens"
        )


def held_out_slice(config: RunConfig, store: TokenStore, tokenizer: Tokenizer, folder: Path) -> TokenSlice:
    """Opens the slice that ``[eval]`` names. Raises DataError if it is missing, empty, or of another tokenizer."""
    settings = config.eval
    if settings.store:
        store = open_named_store(settings.store, folder)
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
