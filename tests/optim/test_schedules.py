"""Schedules by hand values."""

import math

import pytest

from fromscratch.config.train import Constant, Linear
from fromscratch.optim.schedules import constant, inverse_square_root, linear, warmup_cosine, warmup_stable_decay


def test_warmup_rises_in_equal_parts_and_is_over_at_its_last_step() -> None:
    rates = [constant(step=s, num_steps=100, warmup_steps=4) for s in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_constant_without_warmup() -> None:
    assert constant(step=0, num_steps=1, warmup_steps=0) == 1.0


def test_linear_falls_to_the_minimum_after_the_last_step() -> None:
    rates = [linear(step=s, num_steps=10, warmup_steps=0, min_factor=0.5) for s in (0, 5, 9, 10)]
    assert rates == pytest.approx([1.0, 0.75, 0.55, 0.5])


def test_cosine_is_half_way_in_the_middle() -> None:
    rates = [warmup_cosine(step=s, num_steps=110, warmup_steps=10, min_factor=0.2) for s in (10, 35, 60, 110, 500)]
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    assert rates == pytest.approx([1.0, quarter, 0.6, 0.2, 0.2])


def test_inverse_square_root_does_not_depend_on_the_length() -> None:
    rates = [inverse_square_root(step=s, num_steps=n, warmup_steps=4) for n in (20, 900) for s in (0, 3, 4, 16, 400)]
    assert rates == pytest.approx(2 * [0.2, 0.8, 1.0, 0.5, 0.1])


def test_stable_then_decay() -> None:
    rates = [
        warmup_stable_decay(step=s, num_steps=100, warmup_steps=10, decay_steps=20, min_factor=0.0)
        for s in (0, 10, 79, 80, 90, 99)
    ]
    assert rates == pytest.approx([1 / 11, 1.0, 1.0, 1.0, 0.5, 0.05])


def test_a_run_files_minimum_is_a_share_of_its_rate() -> None:
    schedule = Linear(min_learning_rate=1e-4).rate_factor(4e-4)
    assert [schedule(step=s, num_steps=10) for s in (0, 5, 10)] == pytest.approx([1.0, 0.625, 0.25])
    assert Constant(warmup_steps=1).rate_factor(4e-4)(step=0, num_steps=10) == 0.5
