"""Sampling of the next token."""

import pytest
import torch

from fromscratch.errors import UsageError
from fromscratch.generation.sampling import Sampling

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_b24_temperature_zero_is_greedy() -> None:
    assert Sampling(temperature=0).choose(LOGITS, [generator()]) == [1]


def test_temperature_divides_the_scores() -> None:
    torch.testing.assert_close(
        Sampling(temperature=0.5).probabilities(LOGITS).float(), (LOGITS / 0.5).softmax(-1), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(("top_k", "kept"), [(1, {1}), (2, {1, 2}), (4, {0, 1, 2, 3}), (1_000_000, {0, 1, 2, 3})])
def test_b24_top_k_keeps_the_highest_and_is_clamped(top_k: int, kept: set[int]) -> None:
    probabilities = Sampling(top_k=top_k).probabilities(LOGITS)
    assert {i for i, p in enumerate(probabilities[0].tolist()) if p > 0} == kept
    assert probabilities.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, {1}), (0.66, {1, 2}), (0.95, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: set[int]) -> None:
    probabilities = Sampling(top_p=top_p).probabilities(LOGITS)
    assert {i for i, p in enumerate(probabilities[0].tolist()) if p > 0} == kept


def test_draws_follow_the_probabilities() -> None:
    sampling = Sampling(temperature=1.0)
    drawn = torch.tensor(sampling.choose(LOGITS.expand(20_000, 4), [generator()] * 20_000))
    shares = torch.bincount(drawn, minlength=4) / 20_000
    torch.testing.assert_close(shares, LOGITS.softmax(-1)[0], atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"top_p": float("nan")}, "top-p"),
    ],
)
def test_b24_settings_out_of_range(settings: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Sampling(**settings)  # type: ignore[arg-type]


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"temperature.*top-k.*top-p"):
        Sampling(temperature=-1, top_k=0, top_p=2)


def test_min_p_keeps_what_is_nearly_as_probable_as_the_likeliest() -> None:
    probabilities = LOGITS.softmax(-1)[0]
    for min_p in (0.0, 0.05, 0.2, 0.5, 1.0):
        kept = {i for i, p in enumerate(Sampling(min_p=min_p).probabilities(LOGITS)[0].tolist()) if p > 0}
        assert kept == {i for i, p in enumerate(probabilities.tolist()) if p >= min_p * probabilities.max().item()}


def test_the_repetition_penalty_by_hand() -> None:
    texts = [[1, 3, 1, 9]]  # 9 has no logit
    expected = [[1.0, 1.5, 2.0, -2.0]]
    assert Sampling(repetition_penalty=2.0).penalised(LOGITS, texts).tolist() == expected
    assert Sampling().penalised(LOGITS, texts) is LOGITS


@pytest.mark.parametrize(
    "settings", [{"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"repetition_penalty": float("nan")}]
)
def test_b24_the_newer_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings)).replace("_", "-")):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "repetition_penalty": 1.5e-117},
        {"temperature": 1.0, "repetition_penalty": 1.7e308},
        {"temperature": 5e-324},
        {"temperature": 1.7e308, "top_p": 1e-300, "min_p": 5e-324},
        {"temperature": 5e-324, "repetition_penalty": 5e-324, "top_k": 1, "top_p": 1.0},
    ],
)
def test_no_accepted_setting_overflows(settings: dict[str, float]) -> None:
    sampling = Sampling(**settings)  # type: ignore[arg-type]
    logits = torch.tensor([[3.0, -2.0, 0.0, 1e4, -1e4]])
    scores = sampling.penalised(logits, [[0, 1, 3]])
    probabilities = sampling.probabilities(scores)
    assert bool(torch.isfinite(probabilities).all()) and float(probabilities.sum()) == pytest.approx(1.0)
    assert 0 <= sampling.choose(scores, [generator()])[0] < 5
