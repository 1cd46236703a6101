"""The results folder of one judge.

``judge.json`` says who judged and how, and never holds a key. ``replies.jsonl`` holds every raw reply. ``annotated/``
holds, for each model, its answers with what the judge said; ``labels.jsonl`` what a person said. ``report.json``,
``report.md`` and ``report.png`` are the report.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fromscratch.errors import DataError, UsageError
from fromscratch.files import locked, parent_problem, read_json_object, shortened, to_strict_json, write_atomically
from fromscratch.finetuning.records import RESPONSE
from fromscratch.judging.modes import Judgement, Mode, Task, find_mode
from fromscratch.judging.responses import AnswerSet, load_answers
from fromscratch.runs.records import read_records

FORMAT_VERSION = 1
IDENTITY, SCOPE, REFUSED, STATUS, JUDGED = "judge", "scope", "refused_parameters", "status", "judged"
REPLIED_AS = "replied_as"


class ResultsFolder:
    """A results folder that exists."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError for a folder of something else, DataError for a damaged one."""
        self.path = path
        self.replies, self.labels, self.annotated = path / "replies.jsonl", path / "labels.jsonl", path / "annotated"
        self._description_file = path / "judge.json"
        if not self._description_file.is_file():
            raise UsageError(f"{path}: is no results folder of 'fromscratch judge' (it has no judge.json)")
        self.description = read_json_object(self._description_file)
        version = self.description.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise DataError(f"{path}: written in format {version}, this version reads up to {FORMAT_VERSION}; upgrade")
        for key, kind in ((IDENTITY, dict), (SCOPE, dict), (REFUSED, list)):
            if not isinstance(self.description.get(key), kind):
                raise DataError(f"{self._description_file}: malformed, it has no '{key}'")

    @property
    def mode(self) -> Mode:
        """How the judge was asked."""
        return find_mode(str(self.description[IDENTITY].get("mode")))

    def begin(self, scope: dict[str, Any], answers: AnswerSet) -> None:
        """Records what the present command judges, so that its report can be made again from the folder alone."""
        self.record_scope(scope)
        self.write_annotated(answers, {})

    def record_scope(self, scope: dict[str, Any]) -> None:
        """Changes what is given, and keeps the rest of the scope."""
        self.description[SCOPE] |= scope
        self._write()

    def record_refused(self, refused: set[str]) -> None:
        """Records which parameters the endpoint does not take: the rest of a folder is asked in the same way."""
        self.description[REFUSED] = sorted(refused)
        self._write()

    def other_model(self, name: str) -> str | None:
        """Returns the model that replied first, if it is another one; records the first.

        A name such as ``gpt-4o`` may mean another model next month.
        """
        known = self.description.get(REPLIED_AS)
        if name and not known:
            self.description[REPLIED_AS] = name
            self._write()
        return str(known) if name and known and name != known else None

    def _write(self) -> None:
        write_atomically(self._description_file, to_strict_json(self.description, indent=1))

    def judgements(self, tasks: Sequence[Task]) -> dict[str, Judgement]:
        """Returns the judgements about these tasks, by key."""
        by_key = {task.key: task for task in tasks}
        found: dict[str, Judgement] = {}
        for record in read_records(self.replies):
            task = by_key.get(str(record.get("key")))
            if task and record.get(STATUS) == JUDGED and self.mode.holds(task, record.get("judgement")):
                found[task.key] = record["judgement"]
        return found

    def tried(self) -> dict[str, str]:
        """Returns the last reason of every task that was asked without success so far, by key."""
        last: dict[str, str] = {}
        for record in read_records(self.replies):
            key = str(record.get("key"))
            if record.get(STATUS) == JUDGED:
                last.pop(key, None)
            else:
                last[key] = str(record.get("reason"))
        return last

    def tokens(self) -> tuple[int, int]:
        """Returns the input and output tokens of all requests so far."""
        counts = [
            [value if isinstance(value := record.get(name), int) else 0 for name in ("input_tokens", "output_tokens")]
            for record in read_records(self.replies)
        ]
        return sum(count[0] for count in counts), sum(count[1] for count in counts)

    def answers(self) -> AnswerSet:
        """Returns the answers that the last command judged. Raises DataError when they cannot be read."""
        models = self.description[SCOPE].get("models")
        if not isinstance(models, list) or not models:
            raise DataError(f"{self._description_file}: malformed, its scope names no models")
        try:
            return load_answers([f"{model}={self.annotated / f'{model}.json'}" for model in models], [RESPONSE])
        except UsageError as error:
            raise DataError(str(error)) from None

    def tasks(self, answers: AnswerSet) -> list[Task]:
        """Returns the requests of the last command."""
        scope = self.description[SCOPE]
        return self.mode.tasks(answers, repeats=int(scope.get("repeats", 1)), seed=int(scope.get("seed", 0)))

    def write_annotated(self, answers: AnswerSet, said: dict[str, list[dict[str, Any]]]) -> None:
        """Writes ``annotated/MODEL.json``: the records, with what the judge said of each answer."""
        self.annotated.mkdir(exist_ok=True)
        for model, texts in answers.answers.items():
            notes = said.get(model) or [{}] * len(texts)
            records = [
                {"instruction": q.instruction, "input": q.input, "output": q.reference, RESPONSE: text, **note}
                for q, text, note in zip(answers.questions, texts, notes, strict=True)
            ]
            write_atomically(self.annotated / f"{model}.json", to_strict_json(records, indent=1))


@contextmanager
def open_folder(path: Path, identity: dict[str, Any]) -> Iterator[ResultsFolder]:
    """Opens the results folder of a judge, or makes it, and locks it.

    Raises:
        UsageError: it holds results of another judge, or something else; or another process uses it.
    """
    path = path.expanduser().resolve()
    problem = "is a file, not a folder" if path.exists() and not path.is_dir() else parent_problem(path)
    if problem:
        raise UsageError(f"--out {path}: {problem}; give another folder")
    if path.is_dir() and (there := sorted(entry.name for entry in path.iterdir())) and "judge.json" not in there:
        raise UsageError(f"--out {path}: holds {shortened(there)}, which a judge did not write; give another folder")
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "judge.json").exists():
        begin = {"format_version": FORMAT_VERSION, IDENTITY: identity, REFUSED: [], SCOPE: {}}
        write_atomically(path / "judge.json", to_strict_json(begin, indent=1))
    folder = ResultsFolder(path)
    known = folder.description[IDENTITY]
    if changed := [key for key in {**known, **identity} if known.get(key) != identity.get(key)]:
        what = "; ".join(f"{key} {known.get(key)} there, {identity.get(key)} now" for key in changed)
        raise UsageError(
            f"--out {path}: holds results of another judge ({what}), which are not mixed; give another --out, or the "
            "same judge and settings"
        )
    refusal = f"--out {path}: another process judges into it; wait for it, or stop it"
    with locked(path / ".lock", refusal=refusal):
        yield folder
