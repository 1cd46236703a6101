"""The models that the playground offers: runs with checkpoints, and exported folders, below the folder of runs.

Needs no torch: the server lists models, a process of its own opens them (``playground_process``).
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from fromscratch.dashboard.site import RefusedRunError, Site, check_contents
from fromscratch.dashboard.stamps import Memory, stamp_of
from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.runs.directory import RunDirectory
from fromscratch.runs.retention import checkpoints_in, step_of

MODEL_TABLE, HUB_CONFIG, WEIGHTS = "model.toml", "config.json", "*.safetensors"
"""Files of exported folders; ``formats`` names them too, but loads torch."""
LANGUAGE, CHAT, CLASSIFIER = "language", "chat", "classifier"
CLASSIFIER_ENDING = "ForSequenceClassification"


@dataclass(frozen=True)
class Choice:
    """A model that can be picked."""

    name: str
    """Path below the folder of runs."""
    kind: str
    """``language``, ``chat`` (tuned on instructions) or ``classifier``."""
    steps: tuple[int, ...] = ()
    """Its checkpoints, newest first; empty for an exported folder."""

    @property
    def value(self) -> str:
        """The name as questions have it: percent-encoded, because names of folders need not be UTF-8."""
        return quote(self.name, safe="/", errors="surrogateescape")


class Models:
    """Finds models below the folder of runs."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._kinds = Memory()

    def choices(self) -> list[Choice]:
        """All models by name. A run that leads out of the folder, or cannot be read, is left out."""
        runs = {run.path: run for run in self._site.runs()}
        found = [choice for run in runs.values() if (choice := self._run(run))]
        tops = [path for path in self._site.folders() if path not in runs and self._site.is_inside(path)]
        folders = [path for top in tops for path in (top, *self._site.folders(top)) if path not in runs]
        found += [Choice(self._site.name_of(path), _kind_of_export(path)) for path in folders if is_export(path)]
        return sorted(found, key=lambda choice: choice.name)

    def _run(self, run: RunDirectory) -> Choice | None:
        if not self._site.is_inside(run.path):
            return None
        steps = tuple(step_of(path) for path in reversed(checkpoints_in(run.checkpoints)))
        kind = self._kinds.get(run.path, stamp_of(run), lambda: _kind_of_run(run))
        return Choice(self._site.name_of(run.path), kind, steps) if steps and kind else None

    def source(self, name: str, checkpoint: str) -> str:
        """What ``open_model`` needs for a choice. Raises HTTPException 404, and RefusedRunError."""
        path = self._site.folder(name)
        run = RunDirectory(path)
        if not run.exists() and not is_export(path):
            raise RefusedRunError(f"{name[:200]} holds neither a run nor a model")
        check_contents(path, self._site.root)
        return f"{path}@{checkpoint}" if checkpoint and run.exists() else str(path)


def is_export(path: Path) -> bool:
    """Whether a folder holds a model that was imported or published."""
    try:
        is_hub = (path / HUB_CONFIG).is_file() and any(path.glob(WEIGHTS))
        return is_hub or (path / MODEL_TABLE).is_file()
    except OSError:
        return False


def _kind_of_run(run: RunDirectory) -> str:
    """The kind of a run's model; empty if its config cannot be read."""
    try:
        tune = tomllib.loads(run.config.read_text("utf-8")).get("tune")
    except (OSError, ValueError, RecursionError):
        return ""
    kind = tune.get("kind") if isinstance(tune, dict) else None
    return {"classify": CLASSIFIER, "instruct": CHAT}.get(str(kind), LANGUAGE)


def _kind_of_export(path: Path) -> str:
    try:
        names = read_json_object(path / HUB_CONFIG).get("architectures")
    except DataError:
        return LANGUAGE
    is_classifier = isinstance(names, list) and any(str(name).endswith(CLASSIFIER_ENDING) for name in names)
    return CLASSIFIER if is_classifier else LANGUAGE


@cache
def models_of(site: Site) -> Models:
    """The models of a site."""
    return Models(site)
