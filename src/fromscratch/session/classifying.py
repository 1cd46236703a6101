"""Plans the records and the objective of a run that classifies (``[tune] kind = "classify"``)."""

from collections import Counter

from torch import nn

from fromscratch.config.model import HuggingFaceConfig
from fromscratch.config.run import RunConfig
from fromscratch.config.train import AdamW
from fromscratch.config.tune import Classify
from fromscratch.errors import DataError, UsageError
from fromscratch.finetuning.batches import EpochOrder
from fromscratch.finetuning.classification import Classification, class_weights, encode_texts, max_text_tokens
from fromscratch.finetuning.instruction import check_parts
from fromscratch.finetuning.labelled import LabelledTexts, labelled_texts, split_labelled, split_notices
from fromscratch.finetuning.records import RecordsFile
from fromscratch.finetuning.splits import Split, draw_training
from fromscratch.models.factory import initialise
from fromscratch.session.parent import Parent

LEARNING_RATES = {"head": 1e-3, "last-block": 5e-5, "all": 5e-5, "lora": 2e-4}
"""AdamW's rates by ``tune.train``, for models of GPT-2's width: rounded from Radford et al. 2018, higher where few
weights are trained."""
REFERENCE_WIDTH = 768


def with_suited_rate(config: RunConfig, tune: Classify, parent: Parent) -> tuple[RunConfig, list[str]]:
    """Returns the config with AdamW's learning rate by ``tune.train`` and the model's width, if none is given.

    The rate is inverse to the width, which is the number of terms that an output sums (Yang et al. 2022, "Tensor
    Programs V", table 3). The second value is what the user should know of it.
    """
    train, optimizer = config.train, config.train.optimizer
    if not isinstance(optimizer, AdamW) or "learning_rate" in optimizer.model_fields_set:
        return config, []
    head = parent.loaded.model.last_layer()
    assert isinstance(head, nn.Linear)
    rate = float(f"{LEARNING_RATES[tune.train] * REFERENCE_WIDTH / head.in_features:.2g}")
    suited = optimizer.model_copy(update={"learning_rate": rate})
    notice = f"learning rate {rate:g}, for tune.train = {tune.train} and a model {head.in_features:,} wide"
    return config.model_copy(update={"train": train.model_copy(update={"optimizer": suited})}), [notice]


def plan_classification(
    config: RunConfig, tune: Classify, file: RecordsFile, parent: Parent
) -> tuple[Classify, Classification, Split]:
    """Returns ``[tune]`` with the columns and classes of the file, the objective and the parts.

    With ``tune.random_weights``, the parent's weights are drawn anew.

    Raises:
        UsageError: a setting does not fit the file or the model.
        DataError: a record is not valid, or a class has too few texts.
    """
    where, seed, loaded = str(file.path), config.train.seed, parent.loaded
    texts = labelled_texts(file, tune.text_column, tune.label_column)
    tune = _with_classes(tune, texts, where)
    if tune.random_weights:
        _draw_weights(parent, seed)
    split = split_labelled(texts, tune, seed=seed, where=where)
    split = draw_training(split, tune.train_examples, texts.labels, seed)
    training, validation = (
        encode_texts(
            [texts.texts[i] for i in part],
            [tune.classes.index(texts.labels[i]) for i in part],
            loaded.tokenizer,
            context_length=max_text_tokens(loaded),
            is_framed=loaded.model.is_encoder,
        )
        for part in (split.train, split.validation)
    )
    check_parts(training, validation, global_batch=config.train.global_batch, where=where)
    is_weighted = tune.balance == "weights"
    objective = Classification(
        training,
        validation,
        EpochOrder(training.lengths, config.train.global_batch, seed, config.data.epochs),
        loaded.config.context_length,
        loaded.tokenizer.end_of_text,
        file.fingerprint,
        tuple(split_notices(texts, split, tune)),
        weights=class_weights([texts.labels[i] for i in split.train], tune.classes) if is_weighted else (),
    )
    return tune, objective, split


def _with_classes(tune: Classify, texts: LabelledTexts, where: str) -> Classify:
    found = sorted(Counter(texts.labels))
    if len(found) < 2:
        raise DataError(f"{where}: all texts are of class {found[0]!r}; a classifier needs at least two classes")
    if tune.classes and sorted(tune.classes) != found:
        raise UsageError(
            f"tune.classes = {', '.join(tune.classes)}: must be the classes of {where}, each once: "
            f"{', '.join(found[:20])}{', ...' if len(found) > 20 else ''}"
        )
    columns = {"text_column": texts.text_column, "label_column": texts.label_column}
    return tune.model_copy(update={**columns, "classes": tune.classes or tuple(found)})


def _draw_weights(parent: Parent, seed: int) -> None:
    loaded = parent.loaded
    if isinstance(loaded.config, HuggingFaceConfig):
        raise UsageError(
            f"tune.random_weights: a model of kind {loaded.config.kind!r} is not trained from random weights"
        )
    initialise(loaded.model, loaded.config, seed=seed)
