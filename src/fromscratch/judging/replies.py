"""Reads what a judge replied. Strict: nothing is clamped, completed or guessed; what is not valid is an error."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fromscratch.judging.responses import is_score

THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
MAX_SHOWN_CHARACTERS = 80
MAX_UNSEEN_SHARE = 0.05
"""A letter outside of the listed tokens is less probable than each of them. If that bound is above this share of the
other letter's probability, the judgement is not known well enough."""


class InvalidReplyError(ValueError):
    """A reply that holds no valid judgement."""


def parse_scores(text: str, labels: Sequence[str]) -> dict[str, tuple[float, str]]:
    """Returns score and comment by label from ``{"A": {"comment": ..., "score": ...}, ...}``.

    There may be text around the JSON object, but no second object.

    Raises:
        InvalidReplyError: no object, several, other labels, or a score that is no number from 0 to 100.
    """
    found = _only_object(text)
    if set(found) != set(labels):
        raise InvalidReplyError(f"its keys are {_shown(', '.join(found))}, expected {', '.join(labels)}")
    judged = {}
    for label in labels:
        entry = found[label]
        if not isinstance(entry, dict) or set(entry) != {"comment", "score"}:
            raise InvalidReplyError(f"'{label}' is {_shown(entry)}, expected an object with 'comment' and 'score'")
        if not is_score(entry["score"]):
            raise InvalidReplyError(f"the score of '{label}' is {_shown(entry['score'])}, expected 0 to 100")
        if not isinstance(entry["comment"], str):
            raise InvalidReplyError(f"the comment of '{label}' is {_shown(entry['comment'])}, expected text")
        judged[label] = (float(entry["score"]), entry["comment"])
    return judged


def _only_object(text: str) -> dict[str, Any]:
    text = without_thoughts(text)
    begin = text.find("{")
    try:
        if begin < 0:
            raise ValueError
        found, end = json.JSONDecoder(object_pairs_hook=_without_repeats).raw_decode(text, begin)
    except (ValueError, RecursionError):
        raise InvalidReplyError(f"no JSON object in {_shown(text)}") from None
    if "{" in text[end:]:
        raise InvalidReplyError(f"more than one JSON object in {_shown(text)}")
    return found  # a value that begins with a brace is an object


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def parse_number(text: str) -> float:
    """Returns a reply that is nothing but a whole number from 0 to 100. Raises InvalidReplyError."""
    text = without_thoughts(text).strip()
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not is_score(int(text)):
        raise InvalidReplyError(f"{_shown(text)} is no whole number from 0 to 100")
    return float(text)


def parse_letter(text: str) -> float:
    """Returns 1 for a reply that is nothing but ``A``, and 0 for ``B``. Raises InvalidReplyError."""
    text = without_thoughts(text).strip()
    if text not in {"A", "B"}:
        raise InvalidReplyError(f"{_shown(text)} is neither A nor B")
    return float(text == "A")


def parse_probabilities(log_probabilities: Mapping[str, float]) -> tuple[float, float]:
    """Returns the probability of A among A and B, and that of both, from the most probable first tokens.

    Raises:
        InvalidReplyError: neither letter is listed, or the bound of one that is not is too high.
    """
    listed = letters(log_probabilities)
    by_letter = {letter: math.fsum(p for found, p in listed if found == letter) for letter in "AB"}
    both = sum(by_letter.values())
    if both == 0:
        raise InvalidReplyError(f"neither A nor B is among the tokens {_shown(', '.join(log_probabilities))}")
    unseen = math.exp(min(log_probabilities.values()))
    if min(by_letter.values()) == 0 and unseen > MAX_UNSEEN_SHARE * both:
        raise InvalidReplyError(
            "only one of A and B is among the listed tokens, and not much more probable than others"
        )
    return by_letter["A"] / both, both


def letters(log_probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    """Returns the tokens that are A or B, also with a space before them, with their probabilities."""
    return [
        (token.strip(), math.exp(value)) for token, value in log_probabilities.items() if token.strip() in {"A", "B"}
    ]


def without_thoughts(text: str) -> str:
    """Returns a reply without the block of thoughts with which reasoning models begin."""
    match = THOUGHTS.match(text)
    return text[match.end() :] if match else text


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "...")
