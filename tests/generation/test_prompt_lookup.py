"""Speculative tokens change the speed, not the text."""

from functools import partial
from typing import Any

import pytest
import torch

from fromscratch.generation.decoders import CachedDecoder, DraftTokens, PlainDecoder
from fromscratch.generation.prompt_lookup import MAX_PAUSE, PromptLookup
from fromscratch.models.gpt import GPT
from tests.generation.test_decoders import make, rows

LOOP = [1, 2, 3, 4, 5] * 3


class Passes:
    """Counts passes through a model's blocks, and the positions they computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widths: list[int] = []
        transform = GPT.transform

        def counted(model: GPT, x: torch.Tensor, *past: Any) -> torch.Tensor:
            self.widths.append(x.shape[1])
            return transform(model, x, *past)

        monkeypatch.setattr(GPT, "transform", counted)


def test_a_draft_copies_what_followed_the_last_occurrence() -> None:
    assert PromptLookup(2).draft([1, 2, 3, 7, 8, 9, 1, 2, 3]) == [7, 8]
    assert PromptLookup(2).draft([1, 2, 3, 7, 8, 1, 2, 3, 4, 5, 1, 2, 3]) == [4, 5], "the last time, not the first"
    assert PromptLookup(4).draft([5, 6, 5, 6, 5, 6]) == [5, 6, 5, 6]
    assert PromptLookup(3).draft([9, 9, 9, 9]) == [9, 9, 9]
    assert PromptLookup(4).draft([1, 2, 3, 4, 5, 2, 3]) == [], "two tokens recur by chance"
    assert PromptLookup(4).draft([]) == PromptLookup(4).draft([1, 2, 3]) == []


def test_drafts_of_a_growing_text_are_those_of_a_new_lookup() -> None:
    growing, text = PromptLookup(3), [1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4, 4, 4, 4, 4, 1, 2]
    assert [growing.draft(text[:n]) for n in range(len(text))] == [
        PromptLookup(3).draft(text[:n]) for n in range(len(text))
    ]


def test_rejected_drafts_make_longer_pauses_and_an_accepted_one_ends_them() -> None:
    lookup, silent = PromptLookup(2), []
    for _ in range(9):
        lookup.adapt(0)
        silent.append(0)
        while not lookup.draft(LOOP):
            silent[-1] += 1
    assert silent == [1, 2, 4, 8, 16, 32, MAX_PAUSE, MAX_PAUSE, MAX_PAUSE]
    lookup.adapt(1)
    assert lookup.draft(LOOP)
    lookup.adapt(0)
    assert not lookup.draft(LOOP) and lookup.draft(LOOP)


def test_logits_are_known_while_the_text_follows_the_draft() -> None:
    draft = DraftTokens([4, 5], torch.arange(6.0).view(1, 2, 3))
    assert not DraftTokens().tokens and DraftTokens().after(4) is None
    known = draft.after(4)
    assert known is not None and known.tolist() == [[0.0, 1.0, 2.0]]
    assert draft.after(6) is None and draft.accepted == 1
    known = draft.after(5)
    assert known is not None and known.tolist() == [[3.0, 4.0, 5.0]]
    assert draft.after(4) is None and draft.accepted == 2, "nothing is known after the draft"


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 3}, {"temperature": 0, "repetition_penalty": 1.3}])
@pytest.mark.parametrize("prompt", [LOOP, [7], list(range(40))], ids=["a loop", "one token", "no repetition"])
def test_the_text_is_the_same_with_and_without_past_the_context(prompt: list[int], settings: dict[str, Any]) -> None:
    model = make(context_length=48)
    speculative = rows(model, [prompt], 90, **settings)
    assert speculative == rows(model, [prompt], 90, **settings, decoder=partial(CachedDecoder, draft_tokens=0))
    assert speculative == rows(model, [prompt], 90, **settings, decoder=PlainDecoder)


def test_a_loop_takes_fewer_passes_than_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(context_length=256)
    plain = rows(model, [[7]], 200, temperature=0)
    assert len(set(plain[0][-40:])) < 10, "random weights loop"
    passes = Passes(monkeypatch)
    assert rows(model, [[7]], 200, temperature=0) == plain
    assert len(passes.widths) < 110 and set(passes.widths) == {1, 8}
    passes.widths.clear()
    assert rows(model, [[7], [7]], 200, temperature=0) == plain * 2
    assert len(passes.widths) == 200, "several texts go on step by step"


def test_rejected_drafts_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passes = make(context_length=256), Passes(monkeypatch)
    (text,) = rows(model, [LOOP], 200, seed=1, temperature=3.0)
    assert len(set(text)) > 30
    assert sum(width > 1 for width in passes.widths[1:]) < 10 and len(passes.widths) > 190
