"""Answers of a model to a file of instructions, in the form that judges read. Resumable.

The answers are a JSON list: the records of the file with ``instruction``, ``input``, ``output`` and
``model_response``. ``NAME.meta.json`` beside it says which model answered, with which settings. While the answers
are made, each batch is appended to ``NAME.partial.jsonl``; an interrupted command loses at most one batch.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fromscratch.config.prompts import PromptFormat
from fromscratch.errors import DataError, UsageError
from fromscratch.files import parent_problem, read_json_object, to_strict_json, write_atomically
from fromscratch.finetuning.records import RESPONSE, Exchange, RecordsFile, as_json, to_exchanges
from fromscratch.finetuning.records import read_records as read_file
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.generation.generate import Settings
from fromscratch.generation.texts import LENGTH, continue_prompts
from fromscratch.runs.records import RecordWriter, read_records

IDENTITY, KEY = "identity", "key"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AnswersReport:
    """What ``respond`` did."""

    out: str
    model: str
    records: int
    answered: int
    """Records answered now; the others had been answered before."""
    cut: int
    """Answers given now that reached the maximum number of tokens."""
    long_prompts: int
    """Prompts that do not fit into the context together with their answer; the model saw their ends."""


@dataclass(frozen=True)
class Answers:
    """The files of one set of answers, and who gives them."""

    out: Path
    identity: dict[str, Any]
    """The model and the settings on which answers depend."""

    @property
    def meta(self) -> Path:
        return self.out.with_name(f"{self.out.name}.meta.json")

    @property
    def partial(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial.jsonl")

    def known(self) -> dict[str, str]:
        """Returns the answers given before, by the key of their record.

        Raises:
            UsageError: the file exists and was not written by this command, or with another model or settings.
            DataError: it cannot be read.
        """
        found: dict[str, str] = {}
        if self.out.exists():
            if not self.meta.is_file():
                raise UsageError(f"--out {self.out}: exists and was not written by respond; give another name")
            self._check(read_json_object(self.meta).get(IDENTITY), self.meta)
            for number, record in enumerate(read_file(self.out).records):
                if not isinstance(record.get(RESPONSE), str):
                    raise DataError(
                        f"{self.out}: record {number} has no {RESPONSE}; move the file away to answer again"
                    )
                found[key_of(record)] = record[RESPONSE]
        for record in read_records(self.partial):
            if IDENTITY in record:
                self._check(record[IDENTITY], self.partial)
            elif isinstance(record.get(RESPONSE), str):
                found[str(record.get(KEY))] = record[RESPONSE]
        return found

    def _check(self, identity: Any, path: Path) -> None:
        if identity == self.identity:
            return
        old = identity if isinstance(identity, dict) else {}
        keys = [key for key in {**old, **self.identity} if old.get(key) != self.identity.get(key)]
        raise UsageError(
            f"--out {self.out}: {path.name} holds answers of another model or with other settings "
            f"({', '.join(keys)}); give another --out, or move it away"
        )

    def begin(self, about: dict[str, Any]) -> None:
        """Writes who answers, before the first answer: a file of answers always has its description beside it."""
        meta = {"format_version": FORMAT_VERSION, **about, IDENTITY: self.identity}
        write_atomically(self.meta, to_strict_json(meta, indent=1))

    def write(self, records: list[dict[str, Any]]) -> None:
        """Writes all answers and removes the partial file."""
        write_atomically(self.out, as_json(records))
        self.partial.unlink(missing_ok=True)


def key_of(record: dict[str, Any]) -> str:
    """Returns a text that is the same for the same record, whatever the answer to it."""
    return json.dumps({key: value for key, value in record.items() if key != RESPONSE}, sort_keys=True)


def respond(
    loaded: LoadedModel,
    file: RecordsFile,
    out: Path,
    form: PromptFormat,
    settings: Settings,
    *,
    batch: int,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> AnswersReport:
    """Answers every record that has no answer in ``out`` yet.

    Args:
        batch: number of prompts at a time. Prompts of similar length are answered together.
        on_progress: receives the number of answered records, and of all.

    Raises:
        UsageError: the output cannot be written, or is of something else.
        DataError: a record is not valid.
    """
    _check_place(out, file)
    exchanges = to_exchanges(file, needs_response=False)
    ending = tuple(filter(None, [form.ending.strip()]))
    settings = Settings(settings.max_new_tokens, settings.sampling, settings.seed, (*settings.stop, *ending))
    answers = Answers(out, _identity(loaded, form, settings))
    records = [_with_fields(record, exchange) for record, exchange in zip(file.records, exchanges, strict=True)]
    keys, known = [key_of(record) for record in records], answers.known()
    prompts = [exchange.prompt(form) for exchange in exchanges]
    num_known = sum(key in known for key in keys)
    lengths = [len(ids) for ids in loaded.tokenizer.encode_documents(prompts)]
    answers.begin({"model": _about(loaded), "data": {"file": str(file.path), "sha256": file.fingerprint}})
    num_cut = 0
    with RecordWriter(answers.partial) as writer:
        writer.write({IDENTITY: answers.identity})
        for indices in _batches(lengths, batch):
            if all(keys[index] in known for index in indices):
                continue
            texts = [prompts[index] for index in indices]
            found = continue_prompts(loaded.model, loaded.tokenizer, texts, settings, streams=indices)
            for index, answer in zip(indices, found, strict=True):
                known[keys[index]] = answer.text.strip()
                writer.write({KEY: keys[index], RESPONSE: known[keys[index]]})
            writer.flush()
            num_cut += sum(answer.ended == LENGTH for answer in found)
            on_progress(sum(key in known for key in keys), len(keys))
    answers.write([{**record, RESPONSE: known[key]} for record, key in zip(records, keys, strict=True)])
    room = loaded.model.context_length - settings.max_new_tokens
    is_limited = not loaded.model.has_unlimited_context
    return AnswersReport(
        out=str(out),
        model=loaded.name,
        records=len(records),
        answered=len(records) - num_known,
        cut=num_cut,
        long_prompts=sum(length > room for length in lengths) if is_limited else 0,
    )


def _check_place(out: Path, file: RecordsFile) -> None:
    if out.resolve() == file.path.resolve():
        raise UsageError(f"--out {out}: is the file of instructions itself; give another name")
    problem = "is a folder, not a file" if out.is_dir() else parent_problem(out.absolute())
    if problem or not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: {problem or f'its folder {out.parent} does not exist'}; nothing was written")


def _identity(loaded: LoadedModel, form: PromptFormat, settings: Settings) -> dict[str, Any]:
    return {
        "weights_sha256": loaded.fingerprint(),
        "tokenizer": loaded.tokenizer.fingerprint,
        "prompt": form.model_dump(),
        **json.loads(to_strict_json(asdict(settings))),
    }


def _about(loaded: LoadedModel) -> dict[str, Any]:
    return {"name": loaded.name, "source": loaded.source, "step": loaded.step}


def _with_fields(record: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
    """Returns a record with the fields of judges in front; those of a chat are of its last turn."""
    turn = exchange.turns[-1]
    fields = {"instruction": turn.instruction, "input": turn.input, "output": turn.response}
    return {**fields, **{key: value for key, value in record.items() if key not in {*fields, RESPONSE}}}


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yields the indices of each batch, the same in every session; similar lengths together."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    yield from (order[begin : begin + size] for begin in range(0, len(order), size))
