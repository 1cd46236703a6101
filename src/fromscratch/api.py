"""The Python interface: the verbs of the command line as functions and objects.

Every function raises ``fromscratch.errors.FromScratchError`` with a sentence for the user where the input is wrong.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fromscratch.config.loading import read_run_config, to_toml
from fromscratch.config.model import ModelConfig
from fromscratch.config.prompts import PromptFormat
from fromscratch.config.run import RunConfig
from fromscratch.config.tune import Classify
from fromscratch.data.store import TokenStore
from fromscratch.errors import UsageError
from fromscratch.evaluation.loss import LossReport, measure_loss, save_loss
from fromscratch.finetuning.classifier_report import report_on_run
from fromscratch.formats.model_sources import LoadedModel, open_model
from fromscratch.formats.preparation import Tell, prepare
from fromscratch.formats.stores import held_out_store_of, open_named_store
from fromscratch.generation.generate import Settings
from fromscratch.generation.sampling import Sampling
from fromscratch.generation.texts import continue_prompts
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.planning.forecast import ASSUMED_MFU
from fromscratch.planning.sharding import ShardChoice, as_sharding
from fromscratch.processes.world import ALONE, World, started_local_rank, started_local_world_size, started_rank
from fromscratch.publishing.publish import Destination, PublishReport, publish_model
from fromscratch.runs.directory import RunDirectory, check_run_name
from fromscratch.runs.overview import Overview, overview, resolve_run
from fromscratch.runs.records import read_records
from fromscratch.runs.retention import checkpoints_in
from fromscratch.session.billing import Billing
from fromscratch.session.comparison import Comparison, compare_runs
from fromscratch.session.estimate import Estimate, estimate_run
from fromscratch.session.evaluated import default_split, evaluated_part
from fromscratch.session.placement import MachineOptions, place_run
from fromscratch.session.plan import PlannedRun, plan_run
from fromscratch.session.reporting import session_observers
from fromscratch.session.run import RunSummary, is_done, run_training
from fromscratch.studies.verbs import EngineName, Study, open_folder, train_missing
from fromscratch.tokenizers.base import Tokenizer
from fromscratch.training.observers import Observer

__all__ = [
    "Model",
    "Run",
    "Study",
    "compare",
    "load_model",
    "open_run",
    "open_store",
    "open_study",
    "plan",
    "prepare",
    "run_study",
    "train",
]

RUNS_DIR = Path("runs")
Overrides = Mapping[str, Any] | Iterable[str]


def open_store(name: str | Path) -> TokenStore:
    """Opens a token store by its path, or as ``hf://owner/name``."""
    return open_named_store(str(name))


def train(
    run_file: str | Path,
    *,
    name: str | None = None,
    runs_dir: str | Path = RUNS_DIR,
    overrides: Overrides = (),
    device: str | None = None,
    micro_batch: int | None = None,
    compile_model: bool | None = None,
    activation_checkpointing: bool = False,
    deterministic: bool | None = None,
    shard: ShardChoice = "auto",
    profile: int | None = None,
    stop_after: int | None = None,
    fresh: bool = False,
    allowed_changes: Sequence[str] = (),
    dollars_per_hour: float | None = None,
    observers: Sequence[Observer] = (),
    tell: Tell = print,
) -> "Run":
    """Trains the model of a run file in this process, or continues a stopped run.

    In a script that ``torchrun`` started, the processes train one model, and each gets the run.

    Args:
        name: name of the run; by default that of the file.
        overrides: ``{"train.seed": 7}``, or ``["train.seed=7"]``.
        device, micro_batch, compile_model, activation_checkpointing, deterministic, shard: as the options of the
            command. They change speed and memory, not the result.
        profile: write a Chrome trace of so many steps into the run.
        stop_after: save and stop after this step.
        fresh: start again; an older run is renamed.
        allowed_changes: keys whose values may differ from those that the run was started with.
        dollars_per_hour: price of all machines of the run together, for ``fromscratch runs cost``.
        observers: watch the steps; they cannot change the run. ``terminal_observer()`` of
            ``fromscratch.training.observers`` shows progress.
        tell: gets sentences about what was decided.

    Returns:
        The run; ``Run.summary`` says how it ended.

    Raises:
        DivergedError: training diverged.
    """
    if stop_after is not None and stop_after < 1:
        raise UsageError(f"stop_after = {stop_after}: must be a step, 1 or more")
    billing, file = Billing(dollars_per_hour), Path(run_file)
    planned = plan_run(file, override_items(overrides))
    path = Path(runs_dir) / check_run_name(file.stem if name is None else name)
    wish = as_sharding(shard)
    machine = MachineOptions(device, micro_batch, compile_model, activation_checkpointing, deterministic, wish)
    session: dict[str, Any] = {"stop_after": stop_after, "fresh": fresh, "allowed_changes": allowed_changes}
    return train_planned(planned, path, machine, observers, tell, profile=profile, billing=billing, **session)


def train_planned(
    planned: PlannedRun,
    path: Path,
    machine: MachineOptions,
    observers: Sequence[Observer],
    tell: Tell,
    *,
    fresh: bool,
    profile: int | None = None,
    **session: Any,
) -> "Run":
    """Trains a planned run in this process; measures a classifier that is done, as the command line does."""
    is_main, run = started_rank() == 0, RunDirectory(path)
    placement = place_run(planned, run, machine, fresh=fresh, on_progress=tell)
    for notice in (*planned.notices, *planned.objective.notices(), placement.threads.notice):
        if notice and is_main:
            tell(notice)
    all_observers = [*observers, *session_observers(planned.config.train.report_to, run, profile, tell)]
    summary = run_training(planned, path, placement, observers=all_observers, fresh=fresh, **session)
    if isinstance(planned.config.tune, Classify) and is_done(summary) and is_main:
        report_on_run(open_model(str(path), find_hardware(machine.device), may_classify=True))
    return Run(run, summary)


def override_items(overrides: Overrides) -> list[str]:
    """``key=value`` items, as ``--set`` takes them."""
    if isinstance(overrides, Mapping):
        return [f"{key}={to_toml(value)}" for key, value in overrides.items()]
    return list(overrides)


def plan(
    run_file: str | Path,
    *,
    overrides: Overrides = (),
    machines: Sequence[str] | None = None,
    mfu: float = ASSUMED_MFU,
) -> Estimate:
    """Says what a run takes before anything is spent: parameters, FLOPs, memory, disk, hours, dollars.

    Args:
        overrides: as for ``train``.
        machines: names from ``machines.toml``, or ``here``; None means this machine and all known ones.
        mfu: share of a GPU's peak to assume where ``fromscratch bench`` has measured nothing.
    """
    return estimate_run(
        Path(run_file), override_items(overrides), machines=None if machines is None else list(machines), mfu=mfu
    )


def compare(runs: Sequence[str | Path], *, runs_dir: str | Path = RUNS_DIR) -> Comparison:
    """Compares two or more runs, by path or name: key figures, and the config values that differ. Reads only."""
    return compare_runs([resolve_run(str(run), Path(runs_dir)) for run in runs])


def open_study(study_file: str | Path, *, runs_dir: str | Path = RUNS_DIR) -> Study:
    """Opens a study, to look at its verdicts or to write its report. Trains nothing."""
    return Study(open_folder(Path(study_file), Path(runs_dir)))


def run_study(
    study_file: str | Path,
    *,
    runs_dir: str | Path = RUNS_DIR,
    device: str | None = None,
    jobs: int | None = None,
    engine: EngineName = "local",
    limit_dollars: float | None = None,
    dollars_per_hour: float | None = None,
    tell: Tell = print,
) -> Study:
    """Trains the runs of a study that are missing, each in a process of its own, and resumes interrupted ones.

    Args:
        jobs: runs at once; by default one per GPU, or one on the CPU.
        engine: ``local``, or ``ray`` for the nodes of a Ray cluster.
        limit_dollars: begin no run with which spent and predicted dollars would exceed this.
        dollars_per_hour: price of the machine of one run.
        tell: gets a line for each run that begins or ends.

    Returns:
        The study; ``Study.outcome`` says whether a run failed, a signal interrupted it, or the limit stopped it.
    """
    folder = open_folder(Path(study_file), Path(runs_dir))
    outcome = train_missing(
        folder,
        device=device,
        jobs=jobs,
        engine=engine,
        limit_dollars=limit_dollars,
        dollars_per_hour=dollars_per_hour,
        quiet=True,
        on_event=tell,
    )
    return Study(folder, outcome)


def open_run(run: str | Path, *, runs_dir: str | Path = RUNS_DIR) -> "Run":
    """Opens a run by its path, or by its name in ``runs_dir``. Reads only."""
    return Run(resolve_run(str(run), Path(runs_dir)))


class Run:
    """A run on disk."""

    def __init__(self, directory: RunDirectory, summary: RunSummary | None = None) -> None:
        self.directory = directory
        self.summary = summary
        """How the session of ``train`` ended; None for a run that was opened."""

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def path(self) -> Path:
        return self.directory.path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return read_run_config(self.directory.config)

    @property
    def overview(self) -> Overview:
        """State, progress, losses, size and times."""
        return overview(self.directory)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The checkpoints by step, oldest first."""
        return {int(path.name.removeprefix("step-")): path for path in checkpoints_in(self.directory.checkpoints)}

    def metrics(self) -> Any:
        """What every step recorded: a pandas frame where pandas is installed, else a list of dictionaries."""
        return _frame(list(read_records(self.directory.metrics)))

    def events(self) -> Any:
        """What happened (evaluations, checkpoints, signals), as ``metrics``."""
        return _frame(list(read_records(self.directory.events)))

    def load_model(self, which: str | int = "best", *, device: str | None = None) -> "Model":
        """Loads the model of a checkpoint: ``best``, ``latest``, or the step of one of ``checkpoints``."""
        return load_model(f"{self.path}@{f'step-{which}' if isinstance(which, int) else which}", device=device)


def load_model(source: str | Path, *, device: str | None = None, runs_dir: str | Path = RUNS_DIR) -> "Model":
    """Loads a model: a run, ``RUN@latest``, a checkpoint, an exported folder, ``owner/name`` on the Hub, ``gpt2``."""
    hardware = find_hardware(device, local_rank=started_local_rank(), processes_here=started_local_world_size())
    return Model(open_model(str(source), hardware, runs_dir=Path(runs_dir)), hardware)


class Model:
    """A trained model with its tokenizer."""

    def __init__(self, loaded: LoadedModel, hardware: Hardware) -> None:
        self.loaded, self.hardware = loaded, hardware

    def __repr__(self) -> str:
        return f"Model({self.loaded.source!r})"

    @property
    def module(self) -> Any:
        """The ``torch.nn.Module`` in evaluation mode: ids ``[batch, time]`` to logits ``[batch, time, vocab]``."""
        return self.loaded.model

    @property
    def config(self) -> ModelConfig:
        """The ``[model]`` table of a run file with this architecture."""
        return self.loaded.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.loaded.tokenizer

    @property
    def prompt_format(self) -> PromptFormat | None:
        """The format of the prompts that the model was tuned on; None if it was not tuned, or nobody knows."""
        return self.loaded.prompt_format

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; a shared matrix counts once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def generate(
        self,
        prompt: str = "",
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Returns the continuation of a prompt, without it. ``on_text`` receives new text while it is generated."""
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        settings = Settings(max_new_tokens, sampling, seed, tuple(stop))
        tell = (lambda _row, text: on_text(text)) if on_text else (lambda _row, _text: None)
        (result,) = continue_prompts(self.module, self.tokenizer, [prompt], settings, on_text=tell)
        return result.text

    def evaluate(
        self,
        store: str | Path | None = None,
        *,
        split: str | None = None,
        start: int = 0,
        tokens: int | None = None,
        batch: int | None = None,
        precision: str = "fp32",
        world: World = ALONE,
    ) -> LossReport:
        """Measures loss, perplexity and bits per byte on a slice of a store; saves the report in the model's run.

        Args:
            store: by default the store that the run evaluates on.
            split: by default ``validation``, or ``lanes`` for a recurrent run that held out the ends of its lanes.
            start: first token of the slice.
            tokens: number of tokens to predict; by default all.
        """
        loaded = self.loaded
        name = str(store) if store is not None else held_out_store_of(loaded)
        opened = open_named_store(name)
        split = split or default_split(loaded)
        part = evaluated_part(loaded, opened, split, start=start, tokens=tokens)
        report = measure_loss(
            loaded.model, loaded.tokenizer, part, self.hardware, batch=batch, precision=precision, world=world
        ).report
        if world.is_main:
            save_loss(loaded, report, store=name, split=split, start=start, precision=precision)
        return report

    def publish(
        self,
        to: str | Path,
        *,
        format_name: str | None = None,
        license_name: str = "apache-2.0",
        title: str | None = None,
        upload: bool = False,
        private: bool = False,
        collection: str | None = None,
    ) -> PublishReport:
        """Writes a folder that transformers loads, with a model card: ``native`` or ``custom`` format.

        Args:
            to: a folder, or ``hf://owner/name``.
            upload: whether to upload to ``hf://owner/name``, in one commit; otherwise its files are only listed.
            private: whether a new repository is private.
            collection: the slug of a collection on the Hub to add the model to.
        """
        destination = Destination.of(str(to), private=private, collection=collection)
        return publish_model(
            self.loaded, destination, format_name=format_name, license_name=license_name, title=title, upload=upload
        )


def _frame(records: list[dict[str, Any]]) -> Any:
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        return records
    return pandas.DataFrame(records)
