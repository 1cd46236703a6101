"""Schedules by hand values."""

import math

import pytest

from fromscratch.optim.schedules import constant, linear, warmup_cosine, warmup_stable_decay


def test_warmup_rises_in_equal_parts_and_is_over_at_its_last_step() -> None:
    rates = [constant(step=s, num_steps=100, learning_rate=1.0, warmup_steps=4) for s in range(6)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_constant_without_warmup() -> None:
    assert constant(step=0, num_steps=1, learning_rate=3e-4, warmup_steps=0) == 3e-4


def test_linear_falls_to_the_minimum_after_the_last_step() -> None:
    rates = [
        linear(step=s, num_steps=10, learning_rate=1.0, warmup_steps=0, min_learning_rate=0.5) for s in (0, 5, 9, 10)
    ]
    assert rates == pytest.approx([1.0, 0.75, 0.55, 0.5])


def test_cosine_is_half_way_in_the_middle() -> None:
    rates = [
        warmup_cosine(step=s, num_steps=110, learning_rate=1.0, warmup_steps=10, min_learning_rate=0.2)
        for s in (10, 35, 60, 110, 500)
    ]
    quarter = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4))
    assert rates == pytest.approx([1.0, quarter, 0.6, 0.2, 0.2])


def test_stable_then_decay() -> None:
    rates = [
        warmup_stable_decay(
            step=s, num_steps=100, learning_rate=1.0, warmup_steps=10, decay_steps=20, min_learning_rate=0.0
        )
        for s in (0, 10, 79, 80, 90, 99)
    ]
    assert rates == pytest.approx([1 / 11, 1.0, 1.0, 1.0, 0.5, 0.05])
