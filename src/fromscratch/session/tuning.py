"""Plans a run that tunes a model on records (``[tune]``). What it returns is trained like any other run."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fromscratch.config.loading import merge, parse_override, parse_run_config
from fromscratch.config.model import GPTConfig, HuggingFaceConfig, ModelConfig
from fromscratch.config.run import RunConfig
from fromscratch.config.tune import Classify, Instruct, Tuning
from fromscratch.errors import UsageError
from fromscratch.finetuning.adaptation import adapt
from fromscratch.finetuning.batches import EpochOrder
from fromscratch.finetuning.instruction import InstructionTuning, check_parts, encode_examples
from fromscratch.finetuning.labelled import read_table
from fromscratch.finetuning.records import RecordsFile, to_exchanges
from fromscratch.finetuning.splits import Split, draw_training, split_records
from fromscratch.models.costs import model_costs
from fromscratch.models.huggingface import is_dropout
from fromscratch.session.classifying import plan_classification, with_suited_rate
from fromscratch.session.epochs import check_patience, once_per_epoch
from fromscratch.session.parent import Parent, open_base
from fromscratch.session.plan import PlannedRun, check_schedule


def plan_tuning(config: RunConfig, folders: dict[str, Path], where: str, *, suits_rate: bool = False) -> PlannedRun:
    """Opens the base model and the records of a config with ``[tune]``. Writes no files.

    Args:
        folders: where relative paths start, by key.
        where: the name of the run file or command, for messages.
        suits_rate: whether a classifier's learning rate, where none is given, suits the model's width.

    Raises:
        UsageError: a setting is invalid, or the model or file does not exist.
        DataError: the records or the model are damaged.
    """
    tune, start = config.tune, config.train.start_from
    assert tune is not None
    if start is None:
        raise UsageError(f"{where}: [tune] needs train.start_from, the model to tune")
    file = read_table(_find(config.data.store, folders.get("data.store", Path())))
    parent = open_base(start, folders.get("train.start_from", Path()), where, may_encode=isinstance(tune, Classify))
    config = config.model_copy(update={"model": _model_config(config.model, parent, tune, where)})
    objective: InstructionTuning
    if isinstance(tune, Classify):
        tune, objective, split = plan_classification(config, tune, file, parent)
        config = config.model_copy(update={"tune": tune})
        config, rate_notices = with_suited_rate(config, tune, parent) if suits_rate else (config, [])
    else:
        objective, split = _instruction_tuning(config, tune, file, parent)
        rate_notices = []
    order = objective.order
    config = once_per_epoch(config, order.steps_per_epoch)
    check_patience(config, where)
    tokens = order.num_steps * objective.tokens_per_step
    config = config.resolved(vocab_size=config.model.vocab_size or 0, tokens=tokens)
    check_schedule(config, order.num_steps, where)
    return PlannedRun(
        config=config,
        store=file,
        tokenizer=parent.loaded.tokenizer,
        objective=objective,
        num_steps=order.num_steps,
        costs=model_costs(config.model, num_classes=len(tune.classes) if isinstance(tune, Classify) else None),
        folder=folders.get("data.store", Path()),
        parent=parent,
        adapt=partial(adapt, tune=tune),
        notices=(*rate_notices, *_dropout_notices(config.model, tune)),
        longest_sequence=max(order.lengths),
        steps_per_epoch=order.steps_per_epoch,
        attachments=split.files(file.records),
    )


def tuning_config(values: dict[str, Any], overrides: list[str], where: str) -> RunConfig:
    """Returns the config of a command line: its own values, then those of ``--set``. Raises UsageError."""
    for item in overrides:
        values = merge(values, parse_override(item))
    return parse_run_config(values, where=where)


def _find(name: str, folder: Path) -> Path:
    local = folder / Path(name).expanduser()
    return local if local.is_file() else Path(name).expanduser()


def _model_config(given: ModelConfig, parent: Parent, tune: Tuning, where: str) -> ModelConfig:
    """Returns the base model's config, with the dropout of ``[tune]``."""
    config = parent.loaded.config
    if given != GPTConfig() and given.weight_settings() != config.weight_settings():
        raise UsageError(f"{where}: [model] differs from the model of train.start_from; remove [model]")
    if tune.dropout is None:
        return config
    if not hasattr(config, "dropout"):
        if tune.dropout:
            raise UsageError(
                f"{where}: tune.dropout = {tune.dropout}: a model of kind {config.kind!r} has no dropout that is the "
                "same after a resume; set it to 0"
            )
        return config
    return config.model_copy(update={"dropout": tune.dropout})


def _dropout_notices(config: ModelConfig, tune: Tuning) -> Iterator[str]:
    if isinstance(config, HuggingFaceConfig) and tune.dropout is None:
        keys = [key for key, value in json.loads(config.architecture).items() if is_dropout(key, value)]
        if keys:
            yield f"the model's dropout ({', '.join(keys)}) is off, because a resumed run would draw other masks"


def _instruction_tuning(
    config: RunConfig, tune: Instruct, file: RecordsFile, parent: Parent
) -> tuple[InstructionTuning, Split]:
    exchanges, where, seed = to_exchanges(file), str(file.path), config.train.seed
    split = split_records(
        [exchange.question() for exchange in exchanges],
        validation=tune.validation_share,
        test=tune.test_share,
        seed=seed,
        where=where,
    )
    split = draw_training(split, tune.train_examples, [None] * len(exchanges), seed)
    loaded = parent.loaded
    encode = partial(
        encode_examples,
        tokenizer=loaded.tokenizer,
        form=tune.prompt,
        mask_prompt=tune.mask_prompt,
        context_length=loaded.config.context_length,
    )
    training, validation = (encode([exchanges[i] for i in part]) for part in (split.train, split.validation))
    check_parts(training, validation, global_batch=config.train.global_batch, where=where)
    order = EpochOrder(training.lengths, config.train.global_batch, seed, config.data.epochs)
    objective = InstructionTuning(
        training,
        validation,
        order,
        loaded.config.context_length,
        loaded.tokenizer.end_of_text,
        file.fingerprint,
        tuple(split.notices()),
    )
    return objective, split
