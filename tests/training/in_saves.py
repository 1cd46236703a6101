"""Acts inside the background save of a chosen step, however far training is by then."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fromscratch.formats.checkpoints import Contents
from fromscratch.training.saving import CheckpointSaver


def in_background() -> bool:
    """Whether this is the thread that writes checkpoints."""
    return threading.current_thread().name.startswith("checkpoint")


def before_saves(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Calls ``act(step)``, in the background, before anything of a checkpoint of that step is written."""
    write = CheckpointSaver._write

    def writing(saver: CheckpointSaver, contents: Contents, *arguments: Any) -> Any:
        act(contents.state.step)
        return write(saver, contents, *arguments)

    monkeypatch.setattr(CheckpointSaver, "_write", writing)


def call_in_save(monkeypatch: pytest.MonkeyPatch, function: str, step: int, act: Callable[[], None]) -> None:
    """Calls ``act()`` before each call of ``os.<function>`` while the checkpoint of ``step`` is written."""
    original = getattr(os, function)
    being_saved = 0

    def begin(saved_step: int) -> None:
        nonlocal being_saved
        being_saved = saved_step

    def called(*arguments: Any, **options: Any) -> Any:
        if in_background() and being_saved == step:
            act()
        return original(*arguments, **options)

    before_saves(monkeypatch, begin)
    monkeypatch.setattr(os, function, called)
