"""Writes a tokenizer for the transformers library: ``tokenizer.json`` and its settings."""

import json
from pathlib import Path

import tokenizers as hf
from fromscratch.errors import DataError, UsageError
from fromscratch.files import to_strict_json
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.tokenizers.byte_level import byte_of_character
from fromscratch.tokenizers.bytes import BytesTokenizer, OccurringBytesTokenizer
from fromscratch.tokenizers.huggingface import END_OF_TEXT, TOKENIZER_FILE

SETTINGS_FILE = "tokenizer_config.json"
SAMPLES = (
    "Every effort moves you",
    " leading and  double spaces, trailing ",
    "Line\nbreaks\r\n\tand tabs",
    "Numbers 1234567 and snake_case != CamelCase",
    "na\u00efve caf\u00e9 \u4f60\u597d \u0645\u0631\u062d\u0628\u0627 \U0001f600",
)
"""Texts that a published tokenizer must encode as in training."""


def write_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    context_length: int,
    padding_side: str = "left",
    pad_id: int | None = None,
    is_framed: bool = False,
) -> None:
    """Writes both files. The end-of-text token is also the beginning and padding token; no token is added.

    The attention mask distinguishes padding from the end of a text.

    Args:
        padding_side: ``left``, after which generation continues each text, or ``right``, for classifiers.
        pad_id: the id of the padding token, if it is another than the end of text.
        is_framed: whether the model was trained on texts with the tokenizer's special tokens around them.

    Raises:
        UsageError: the tokenizer refuses texts, which no ``tokenizer.json`` does.
    """
    if isinstance(tokenizer, OccurringBytesTokenizer):
        raise UsageError(
            f"tokenizer {tokenizer.name}: knows only the bytes of one text, and a tokenizer.json would drop all others "
            "without a word; prepare the text with --tokenizer bytes to publish a model of it"
        )
    if isinstance(tokenizer, BytesTokenizer):
        (folder / TOKENIZER_FILE).write_text(_bytes_as_json(tokenizer), "utf-8")
    else:
        tokenizer._save_files(folder)
        if not is_framed:
            _remove_post_processor(folder / TOKENIZER_FILE)
    check_ids(tokenizer, folder / TOKENIZER_FILE, is_framed=is_framed)
    end = _token_text(folder / TOKENIZER_FILE, tokenizer.end_of_text)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), end),
        **({"pad_token": _token_text(folder / TOKENIZER_FILE, pad_id)} if pad_id is not None else {}),
        **({"model_input_names": ["input_ids", "attention_mask"]} if is_framed else {}),
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": padding_side,
    }
    (folder / SETTINGS_FILE).write_text(to_strict_json(settings, indent=1), "utf-8")


def _remove_post_processor(file: Path) -> None:
    """Removes what adds tokens such as ``[CLS]`` around a text: training does not add them."""
    whole = json.loads(file.read_text("utf-8"))
    if (whole.get("post_processor") or {}).get("type") not in (None, "ByteLevel"):
        file.write_text(json.dumps(whole | {"post_processor": None}, ensure_ascii=False), "utf-8")


def check_ids(tokenizer: Tokenizer, file: Path, *, is_framed: bool = False) -> None:
    """Raises DataError where a ``tokenizer.json`` encodes texts to other ids than those of training."""
    published = hf.Tokenizer.from_file(str(file))
    for text in SAMPLES:
        before, after = tokenizer.frame() if is_framed else ([], [])
        expected, found = [*before, *tokenizer.encode(text).tolist(), *after], published.encode(text).ids
        if expected != found:
            raise DataError(
                f"tokenizer {tokenizer.name}: as tokenizer.json it encodes {text!r} as {found}, but the model was "
                f"trained with {expected}; it cannot be published"
            )


def _token_text(file: Path, index: int) -> str:
    """Returns the text of an id in ``tokenizer.json``."""
    whole = json.loads(file.read_text("utf-8"))
    added = {token["id"]: token["content"] for token in whole.get("added_tokens", [])}
    vocabulary = whole["model"].get("vocab", {})
    by_id = {number: token for token, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    return str(added.get(index) or by_id[index])


def _bytes_as_json(tokenizer: BytesTokenizer) -> str:
    """Returns byte-pair encoding without merges, as ``tokenizer.json``."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    end = {"id": tokenizer.end_of_text, "content": END_OF_TEXT}
    whole = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": byte_of_character(), "merges": []},
    }
    return json.dumps(whole, ensure_ascii=False)
