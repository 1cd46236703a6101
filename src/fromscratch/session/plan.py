"""Reads a run file and opens what it names: store, tokenizer, objective, parent."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fromscratch.config.loading import load_run_file
from fromscratch.config.run import RunConfig
from fromscratch.data.batches import SequenceBatches
from fromscratch.data.lanes import LaneBatches
from fromscratch.data.store import TokenStore
from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.records import RecordsFile
from fromscratch.formats.stores import open_named_store, tokenizer_of
from fromscratch.hub.names import has_hub_prefix
from fromscratch.models.costs import ModelCosts, model_costs
from fromscratch.models.language_model import LanguageModel
from fromscratch.session.epochs import check_patience, once_per_epoch
from fromscratch.session.parent import Parent, open_parent
from fromscratch.session.samples import text_sampler
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.held_out import HeldOut, HeldOutLanes, TokenSlice
from fromscratch.training.next_token import NextToken
from fromscratch.training.objective import Objective

TRAINING_SPLIT, VALIDATION_SPLIT = "train", "validation"
MAX_UINT16_IDS = 1 << 16
DEFAULT_LANE_SHARE = 0.1


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
    steps_per_epoch: int | None = None
    """None in a run that is not thought of in epochs."""
    attachments: dict[str, str] = field(default_factory=dict)
    """Further text files of the run, by their path in its folder."""

    @property
    def document_end(self) -> int | None:
        """The token id at which attention ends; None where documents are not separated."""
        return self.tokenizer.end_of_text if self.config.data.document_mask else None

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
    config, notices = _with_held_out(config, store)
    sequences = training_sequences(config, store)
    num_steps = planned_steps(config.data.tokens, sequences, costs)
    tokens = sequences.sizes.before(num_steps) * sequences.context_length
    config = config.resolved(vocab_size=vocab_size, tokens=tokens)
    if isinstance(sequences, LaneBatches):
        config = once_per_epoch(config, sequences.steps_per_epoch, samples=True)
        notices += _lane_notices(sequences)
    check_patience(config, str(file))
    check_prompts(config, tokenizer, str(file))
    eval_store = open_named_store(config.eval.store, folders["eval.store"]) if config.eval.store else None
    held_out = _held_out(config, sequences, eval_store or store, tokenizer) if config.train.evaluate_every else None
    sampler = text_sampler(tokenizer, config.eval, seed=config.train.seed)
    objective = NextToken(sequences, config.train.seed, store.fingerprint, held_out, sampler)
    check_schedule(config, num_steps, str(file))
    check_document_mask(config, tokenizer, str(file))
    where = folders.get("train.start_from", file.parent)
    parent = open_parent(config.train.start_from, config.model, tokenizer, where, file)
    return PlannedRun(
        config=config,
        store=store,
        tokenizer=tokenizer,
        objective=objective,
        num_steps=num_steps,
        costs=costs,
        folder=file.parent,
        parent=parent,
        eval_store=eval_store,
        notices=notices,
        steps_per_epoch=sequences.steps_per_epoch if isinstance(sequences, LaneBatches) else None,
    )


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
    settings: dict[str, Any] = {
        "context_length": config.model.context_length,
        "global_batch": config.train.global_batch,
        "start_token": config.data.start_token,
        "epochs": config.data.epochs,
    }
    split = store.split(TRAINING_SPLIT)
    if config.model.reads_lanes:
        return LaneBatches(split, **settings, validation_share=lane_share(config, store))
    shuffle_seed = config.train.seed if config.data.shuffle else None
    return SequenceBatches(split, **settings, shuffle_seed=shuffle_seed, ramp=config.train.batch_ramp)


def _holds_text_out(store: TokenStore) -> bool:
    split = store.manifest.splits.get(VALIDATION_SPLIT)
    return split is not None and split.tokens > 1  # one token predicts nothing


def _wants_validation_split(config: RunConfig) -> bool:
    return config.eval.store is None and config.eval.split == VALIDATION_SPLIT


def lane_share(config: RunConfig, store: TokenStore) -> float:
    """Returns the share of every lane that is held out: the run file's, or a default."""
    if config.data.validation_share is not None:
        return config.data.validation_share
    has_other = _holds_text_out(store) or not _wants_validation_split(config) or config.train.evaluate_every == 0
    return 0.0 if has_other else DEFAULT_LANE_SHARE


def _with_held_out(config: RunConfig, store: TokenStore) -> tuple[RunConfig, tuple[str, ...]]:
    """Decides what is held out where the run file leaves it open; returns the config and a notice.

    Where a store holds no text out, a recurrent model evaluates on the ends of its lanes, another one not at all.
    """
    if config.model.reads_lanes:
        share = lane_share(config, store)
        data = config.data.model_copy(update={"validation_share": share})
        is_default = share and config.data.validation_share is None
        notice = (
            f"store {store.path} holds out no text, so the last {share:.0%} of every lane is held out "
            "(data.validation_share)"
        )
        return config.model_copy(update={"data": data}), (notice,) if is_default else ()
    if not (config.train.evaluate_every and _wants_validation_split(config)) or _holds_text_out(store):
        return config, ()
    train = config.train.model_copy(update={"evaluate_every": 0})
    notice = (
        f"store {store.path} holds out no text, so nothing is evaluated, and the best checkpoint is the one with the "
        "lowest training loss"
    )
    return config.model_copy(update={"train": train}), (notice,)


def _lane_notices(lanes: LaneBatches) -> tuple[str, ...]:
    """Says how the text is divided, and what is left out."""
    unused = f"; {lanes.unused_tokens:,} tokens at the ends of the lanes are left out" if lanes.unused_tokens else ""
    held_out = f", and the last {lanes.held_out_per_lane:,} of each are held out" if lanes.held_out_per_lane else ""
    return (
        f"{lanes.global_batch} lanes of {lanes.lane_tokens:,} tokens: an epoch takes {lanes.steps_per_epoch:,} "
        f"sequences of {lanes.context_length} tokens from each{held_out}{unused}",
    )


def check_prompts(config: RunConfig, tokenizer: Tokenizer, where: str) -> None:
    """Raises UsageError where the tokenizer cannot encode a prompt that the run would sample after."""
    for prompt in config.eval.prompts if config.train.sample_every else ():
        try:
            tokenizer.encode(prompt)
        except UsageError as error:
            raise UsageError(
                f"{where}: eval.prompts, {prompt!r}: {error}; or set train.sample_every = 0 for no samples"
            ) from None


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


def check_document_mask(config: RunConfig, tokenizer: Tokenizer, where: str) -> None:
    """Raises UsageError where ``data.document_mask`` is on and the tokenizer does not mark where documents end."""
    if config.data.document_mask:
        tokenizer.check_end_of_text(f"data.document_mask = true in {where} needs")


def _held_out(config: RunConfig, sequences: SequenceBatches, store: TokenStore, tokenizer: Tokenizer) -> HeldOut:
    """Returns what the held-out loss is measured on: the ends of the lanes, or what ``[eval]`` names."""
    if not isinstance(sequences, LaneBatches) or not sequences.held_out_per_lane:
        return held_out_slice(config, store, tokenizer)
    return ends_of_lanes(sequences, config.eval.tokens)


def ends_of_lanes(lanes: LaneBatches, tokens: int | None) -> HeldOutLanes:
    """Returns what lanes hold out, at most ``tokens`` of it in whole sequences, but one of each lane; None is all."""
    wanted = lanes.held_out_per_lane if tokens is None else max(1, tokens // lanes.tokens_per_step)
    length = min(lanes.held_out_per_lane, wanted) * lanes.context_length
    return HeldOutLanes(lanes.split, tuple(lanes.held_out_starts()), length)


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
