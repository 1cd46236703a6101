"""Effects: shrunken, and as a share of training."""

import numpy as np
import pytest

from fromscratch.errors import UsageError
from fromscratch.studies.effects import effect_of_share, share_of_training, shrink

STEPS = [0, 50, 90, 100]
LOSSES = [10.0, 4.0, 3.5, 3.4]


def test_the_share_of_training_on_a_curve_by_hand() -> None:
    assert share_of_training(-0.05, STEPS, LOSSES) == pytest.approx(0.05)
    assert share_of_training(0.1, STEPS, LOSSES) == pytest.approx(-0.10)
    assert share_of_training(-0.35, STEPS, LOSSES) == pytest.approx(0.30)
    assert share_of_training(0.0, STEPS, LOSSES) == 0.0
    assert share_of_training(-6.7, STEPS, LOSSES) is None


def test_the_effect_of_a_share_is_the_inverse() -> None:
    for share in (0.01, 0.1, 0.3):
        effect = effect_of_share(share, STEPS, LOSSES)
        assert share_of_training(-effect, STEPS, LOSSES) == pytest.approx(share)
    assert effect_of_share(0.01, STEPS, LOSSES) == pytest.approx(0.01)


def test_noise_on_the_curve_makes_no_jumps() -> None:
    steps = np.arange(0, 1001, 10)
    clean = 3.4 + (1000 - steps) / 1000
    noisy = clean + 0.004 * np.random.default_rng(0).standard_normal(len(steps))
    for effect in (0.01, 0.05, 0.3):
        assert share_of_training(-effect, steps, noisy) == pytest.approx(effect, abs=0.015)
    tiny = share_of_training(-1e-6, steps, noisy)
    assert tiny is not None
    assert tiny < 1e-4


@pytest.mark.parametrize(
    ("steps", "losses", "message"),
    [
        ([0], [3.0], "at least 2"),
        ([0, 5], [3.0, float("nan")], "finite"),
        ([5, 0], [3.0, 2.0], "increasing"),
        ([0, 5, 10], [3.0, 2.0], "3 steps and 2 losses"),
        ([0, 5], [2.0, 3.0], "does not fall"),
        ([98, 100], [3.0, 2.0], "share of training 0.05"),
    ],
)
def test_curves_that_cannot_be_used_are_refused(steps: list[int], losses: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        effect_of_share(0.05, steps, losses)


def test_shrunken_effects_of_winners_are_nearer_the_truth() -> None:
    generator = np.random.default_rng(0)
    raw, shrunken = [], []
    for _ in range(500):
        truth = generator.standard_normal(10)
        errors = generator.uniform(0.5, 2.0, 10)
        seen = truth + errors * generator.standard_normal(10)
        winner = int(np.argmin(seen))
        raw.append(seen[winner] - truth[winner])
        shrunken.append(shrink(seen, errors)[winner] - truth[winner])
    assert np.mean(raw) < -1.0
    assert abs(np.mean(shrunken)) < 0.3
    assert np.mean(np.square(shrunken)) < np.mean(np.square(raw)) / 2


def test_effects_within_their_error_shrink_to_nothing_and_large_ones_stay() -> None:
    assert shrink([0.5, -0.3], [1.0, 1.0]).tolist() == [0.0, 0.0]
    assert shrink([50.0], [1.0])[0] == pytest.approx(50.0 * (1 - 1 / 2500))
    assert shrink([], []).tolist() == []
