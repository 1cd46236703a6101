"""The process that opens models and answers the questions of the playground, one at a time.

Reads questions and writes messages, one line of JSON each (``playground_process``). Only here the dashboard loads
torch. It uses the CPU and half of its cores: the accelerator and the other half are left to a training on this machine.
"""

import json
import logging
import os
import select
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from fromscratch.dashboard.playground_process import END, ERROR, GO, STOP
from fromscratch.dashboard.playground_text import Continuer
from fromscratch.errors import FromScratchError, UsageError
from fromscratch.files import readable_bytes, to_strict_json
from fromscratch.finetuning.classifier_report import classify_texts
from fromscratch.formats.classifiers import known_temperature
from fromscratch.formats.model_sources import LoadedModel, locate, open_model
from fromscratch.generation.conversation import TEMPLATES, TRANSCRIPT, Conversation, template_of
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.machine.hardware import find_hardware

IDLE_SECONDS = 600.0
READ_BYTES = 65_536
MAX_MODELS = 2
MAX_WEIGHTS_BYTES = 4_000_000_000
"""Larger models would take too much of the memory that a training needs, and answer slowly on a CPU."""

Emit = Callable[[dict[str, Any]], None]


class StoppedError(Exception):
    """Nobody wants the rest of the answer."""


class Channel:
    """The lines from and to the server.

    Args:
        source: descriptor to read from.
    """

    def __init__(self, source: int, target: IO[str]) -> None:
        self._source = source
        self._target = target
        self._unread = b""

    def question(self) -> dict[str, Any] | None:
        """The next question; None when the server has ended, or has asked nothing for long."""
        while line := self._line(IDLE_SECONDS):
            if line != STOP.encode():  # of a question that has just been answered
                return dict(json.loads(line))
        return None

    def _line(self, max_seconds: float | None = None) -> bytes:
        """The next line; empty at the end, or when none comes in time."""
        while b"\n" not in self._unread:
            if not select.select([self._source], [], [], max_seconds)[0]:
                return b""
            new = os.read(self._source, READ_BYTES)
            if not new:
                return b""
            self._unread += new
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def send(self, message: dict[str, Any]) -> None:
        """Writes a message."""
        self._target.write(to_strict_json(message) + "\n")
        self._target.flush()

    def emit(self, message: dict[str, Any]) -> None:
        """Writes a message and waits until the next one is wanted. Raises StoppedError."""
        self.send(message)
        if self._line() != GO.encode():
            raise StoppedError


class Notices(logging.Handler):
    """Collects what the functions below would print as notices, for the answer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message."""
        self.texts.append(record.getMessage().removeprefix("notice: "))

    def take(self) -> list[str]:
        """Returns the messages since the last call."""
        texts, self.texts = self.texts, []
        return texts


class Answers:
    """Answers questions with the models that were used last."""

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._hardware = find_hardware("cpu")
        self._opened: OrderedDict[tuple[str, ...], tuple[LoadedModel, Continuer]] = OrderedDict()

    def answer(self, question: dict[str, Any], emit: Emit) -> dict[str, Any]:
        """Emits messages, and returns the last one. Raises FromScratchError, and what ``emit`` raises."""
        loaded, continuer = self._open(question["source"])
        kind = question["kind"]
        if bool(loaded.classes) != (kind == "classify"):
            does = "classifies texts" if loaded.classes else "is a language model"
            raise UsageError(f"this model {does}; open it under '{'Classify' if loaded.classes else 'Next token'}'")
        first = {"model": _about(loaded)}
        if kind == "classify":
            (found,) = classify_texts(loaded, [question["text"]])
            is_calibrated = known_temperature(loaded) is not None
            notices = self._notices.take()
            return {**first, "notices": notices, **found, "calibrated": is_calibrated, END: "classified"}
        names = ("temperature", "top_k", "top_p", "min_p")
        sampling = Sampling(**{name: question[name] for name in names})
        settings = Settings(question["max_tokens"], sampling, question["seed"])
        if kind == "chat":
            return self._chat(loaded, question, settings, emit)
        ids = continuer.ids_of(question["text"], question["tokens"])
        notices = [*self._notices.take(), *continuer.notices(len(ids))]
        emit({**first, "notices": notices, "prompt": continuer.read(ids, settings.max_new_tokens)})
        ended = continuer.continue_text(settings, lambda token: emit({"token": token}))
        return {"next": continuer.distribution(), END: ended}

    def _open(self, source: str) -> tuple[LoadedModel, Continuer]:
        place = locate(source)
        key = (source, str(place), str(place.stat().st_mtime_ns))
        if key not in self._opened:
            size = sum(path.stat().st_size for path in _weights(place))
            if size > MAX_WEIGHTS_BYTES:
                raise UsageError(
                    f"the weights have {readable_bytes(size)}; the playground opens up to "
                    f"{readable_bytes(MAX_WEIGHTS_BYTES)}; use 'fromscratch generate' or 'fromscratch chat'"
                )
            while len(self._opened) >= MAX_MODELS:
                self._opened.popitem(last=False)
            loaded = open_model(source, self._hardware, may_classify=True)
            self._opened[key] = loaded, Continuer(loaded)
        self._opened.move_to_end(key)
        return self._opened[key]

    def _chat(self, loaded: LoadedModel, question: dict[str, Any], settings: Settings, emit: Emit) -> dict[str, Any]:
        form = loaded.prompt_format
        conversation = Conversation(
            loaded.model, loaded.tokenizer, template_of(form) if form else TEMPLATES[TRANSCRIPT], settings
        )
        if form is None:
            _check_transcript(loaded, conversation)
        conversation.history = [(asked, answer) for asked, answer in question["history"]]
        prompt = conversation.prompt(question["text"])
        notices, length = self._notices.take(), len(loaded.tokenizer.encode(prompt))
        if form is None:
            notices.append("this model was not tuned on instructions; it continues a transcript of a conversation")
        if length > loaded.model.context_length and not loaded.model.has_unlimited_context:
            limit = f"{loaded.model.context_length:,}"
            notices.append(f"the conversation has {length:,} tokens; the model sees only the last {limit}")
        emit({"model": _about(loaded), "notices": notices, "prompt": prompt})
        answer = conversation.answer(question["text"], on_text=lambda new: emit({"text": new}) if new else None)
        return {"answer": answer, END: "answered"}


def _check_transcript(loaded: LoadedModel, conversation: Conversation) -> None:
    """Raises UsageError if a tokenizer lacks what the transcript begins with, which nobody here has typed."""
    try:
        loaded.tokenizer.encode(conversation.prompt(""))
    except UsageError as error:
        reason = "this model was not tuned on instructions, and its tokenizer cannot write how a transcript begins"
        raise UsageError(f"{reason} ({error}); use 'Next token'") from None


def _about(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "step": loaded.step,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "context_length": None if loaded.model.has_unlimited_context else loaded.model.context_length,
        "tokenizer": loaded.tokenizer.name,
    }


def _weights(place: Path) -> list[Path]:
    return [path for ending in ("*.safetensors", "*.bin", "*.pt", "*.pth") for path in place.glob(ending)]


def serve(channel: Channel, answers: Answers) -> None:
    """Answers questions until there are no more."""
    while (question := channel.question()) is not None:
        try:
            last = answers.answer(question, channel.emit)
        except StoppedError:
            continue
        except FromScratchError as error:
            last = {ERROR: str(error), END: ERROR}
        except Exception as error:  # a broken model must not end the process; its message is shown
            traceback.print_exc()
            last = {ERROR: f"the model cannot be used: {type(error).__name__}: {str(error)[:500]}", END: ERROR}
        channel.send(last)


def main() -> None:
    """Runs the process: the server is at the other end of stdin and stdout."""
    target = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no message
    notices = Notices()
    logging.getLogger("fromscratch").addHandler(notices)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    with suppress(BrokenPipeError, KeyboardInterrupt):
        serve(Channel(sys.stdin.fileno(), target), Answers(notices))


if __name__ == "__main__":
    main()
