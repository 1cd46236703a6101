"""The custom format of ``fromscratch publish``: our tensors inside a transformers model.

``config.json`` holds the whole ``[model]`` table. So a folder is read back exactly, without executing its code.
"""

from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from fromscratch.config.model import GPTConfig, ModelConfig
from fromscratch.config.run import parse_model
from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.formats.classifiers import take_score
from fromscratch.formats.imported import ImportedModel
from fromscratch.formats.layouts import EMBEDDING, HEAD, check_tied
from fromscratch.formats.weights import read_weights

MODEL_TYPE = "fromscratch"
TABLE_KEY = "fromscratch_model"
CHANGED_KEYS = {"vocab_size": "vocab_size", "tied_head": "tie_word_embeddings"}
"""Keys of the table that transformers may have changed, and its names for them."""
OUR_HEAD, PUBLISHED_HEAD = "head.", "lm_head."


def _body(config: ModelConfig) -> str:
    """What is before the names of all tensors but the head's."""
    return "model.gpt." if isinstance(config, GPTConfig) else "model.recurrent."


def to_published_tensors(tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Returns our tensors under the names of the published modules; a tied head is stored once."""
    body = _body(config)
    return {
        PUBLISHED_HEAD + name.removeprefix(OUR_HEAD) if name.startswith(OUR_HEAD) else body + name: tensor
        for name, tensor in tensors.items()
    }


def read_published(folder: Path, *, classes: tuple[str, ...] = ()) -> ImportedModel:
    """Reads a folder in the custom format. Raises DataError where it is damaged.

    Args:
        classes: those of a classifier (``FromScratchForSequenceClassification``).
    """
    settings = read_json_object(folder / "config.json")
    table = settings.get(TABLE_KEY)
    if isinstance(table, dict):  # transformers changes its own keys only, such as in resize_token_embeddings
        changed = {ours: settings[theirs] for ours, theirs in CHANGED_KEYS.items() if theirs in settings}
        table |= {key: value for key, value in changed.items() if key in table}
    try:
        config = parse_model(table)
    except ValidationError as error:
        raise DataError(
            f"{folder / 'config.json'}: {TABLE_KEY} is not a model that this version supports "
            f"({error.errors()[0]['msg']} at {error.errors()[0]['loc']}); it may need a newer version"
        ) from None
    tensors = read_weights(folder)
    score = take_score(tensors, folder) if classes else None
    body = _body(config)
    ours = {
        OUR_HEAD + name.removeprefix(PUBLISHED_HEAD) if name.startswith(PUBLISHED_HEAD) else name.removeprefix(body): t
        for name, t in tensors.items()
    }
    if isinstance(config, GPTConfig) and config.tied_head and HEAD in ours:
        ours.setdefault(EMBEDDING, ours[HEAD])  # a tied matrix may be saved under either of its two names
        check_tied(ours, EMBEDDING, HEAD, folder)
        del ours[HEAD]
    return ImportedModel("fromscratch", config, ours, classes=classes, score=score)
