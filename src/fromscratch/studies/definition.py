"""The study file: a baseline, interventions, stacks of interventions, seeds, and how verdicts are reached.

An intervention is a minimal change to the run file of the baseline. Its diff is computed from the resolved configs,
so that it cannot differ from what is run.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from fromscratch.config.base import NonNegative, Positive, Table
from fromscratch.config.loading import differences, load_run_file, read_toml, to_toml
from fromscratch.config.problems import error_messages
from fromscratch.config.run import RunConfig
from fromscratch.config.tune import Classify
from fromscratch.errors import UsageError
from fromscratch.runs.directory import NAME_RULE
from fromscratch.studies.measures import CLASSIFIER_MEASURES, LOSS, TUNED_LOSS, Measure, MeasureName

CONTROL = "baseline"
"""Name of the arm that all others are compared with."""
NOTE = "note"
TARGET_KEYS = ("tune.mask_prompt", "tune.prompt")
"""Keys of ``[tune]`` on which it depends what the loss of instruction tuning is measured on."""
SMALLEST_EFFECTS = "such as 0.01: nats for the loss, a share of the texts for an accuracy"
FIRST_SEED, MAX_SEEDS = 42, 1_000
EQUAL_ARM_OFFSET = 100_000
"""Distance of the seeds of an arm without changes (A/A) from those of the study."""


def _as_seeds(value: Any) -> Any:
    """A number of seeds is short for 42, 43 and so on."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if not 0 < value <= MAX_SEEDS:
        raise ValueError(f"must be a list of seeds, or a number of seeds from 1 to {MAX_SEEDS:,}")
    return tuple(range(FIRST_SEED, FIRST_SEED + value))


class TestSlice(Table):
    """The sealed test set: held-out text that nothing but the report reads."""

    __test__ = False  # not a test class of pytest

    split: str = "validation"
    """Split of the evaluation store."""
    start: NonNegative | None = None
    """Index of its first token; by default the first one after the slice of ``[eval]``."""
    tokens: Positive | None = None
    """Maximum number of tokens; by default all that follow."""


class EarlyStop(Table):
    """When a run without hope is stopped. Without this table, every run takes all its steps."""

    margin: Annotated[float, Field(gt=0)]
    """Stop a run whose held-out loss is higher than the baseline's at the same step by more than this, in nats."""
    after: Annotated[float, Field(ge=0.7, lt=1.0)] = 0.7
    """Share of the steps before which no run is stopped: earlier losses do not predict the last one."""


class Stack(Table):
    """Several interventions at once."""

    of: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    """Names of the interventions, applied in this order."""
    ordered: bool = False
    """Whether a later intervention may replace a key that an earlier one sets."""
    note: str = ""
    """What it is, in words."""


class StudyConfig(Table):
    """The content of a study file."""

    baseline: str
    """Run file of the baseline, relative to the study file."""
    seeds: Annotated[tuple[NonNegative, ...], BeforeValidator(_as_seeds), Field(min_length=1, strict=False)] = (
        42,
        43,
        44,
    )
    """Seeds of every intervention, or their number."""
    control_seeds: Positive | None = None
    """Runs of the baseline; by default as many as each intervention has, times the square root of their number."""
    design: Literal["sequential", "fixed"] = "sequential"
    """``sequential``: valid however often one looks. ``fixed``: valid once, when all declared seeds are done."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Rate of false verdicts over all interventions of the study."""
    smallest_effect: Annotated[float, Field(gt=0)] | None = None
    """Smallest effect of interest, in nats or as a share of the texts; by default the effect on the loss that is worth
    1% of the training."""
    tune: str | None = None
    """Run file with ``[tune]``, relative to the study file: each run's model is tuned so, and the tuned one counts."""
    measure: MeasureName = "loss"
    """What is compared. The accuracies are those of classifiers."""
    test: TestSlice = TestSlice()
    early_stop: EarlyStop | None = None
    interventions: dict[str, dict[str, Any]] = Field(min_length=1)
    """Tables of the run file's keys; ``note`` says in words what changes."""
    stacks: dict[str, Stack] = Field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One column of a study: the baseline, an intervention, or a stack."""

    name: str
    overrides: tuple[str, ...]
    """``key=value`` items, as ``train --set`` takes them."""
    seeds: tuple[int, ...]
    note: str = ""
    members: tuple[str, ...] = ()
    """The interventions of a stack."""
    changes: tuple[str, ...] = ()
    """``key: old -> new`` for every key that differs from the baseline."""


@dataclass(frozen=True)
class Study:
    """A validated study; its runs are ``<arm>-seed-<seed>`` in one folder."""

    name: str
    file: Path | None
    """None for a study without a file (``study try``)."""
    baseline: Path
    config: StudyConfig
    control: Arm
    arms: tuple[Arm, ...]
    """Interventions and stacks, in the order of the file."""
    tune: Path | None = None
    """Run file by which the model of each run is tuned."""
    measure: Measure = LOSS

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        """The control first."""
        return (self.control, *self.arms)

    def tuning(self) -> dict[str, Any]:
        """How the models are tuned and measured, as a part of the study's identity; empty for losses of its runs."""
        found: dict[str, Any] = {"tuned_by": load_run_file(self.tune).config.to_plain()} if self.tune else {}
        return found | ({"measure": self.measure.name} if self.measure.is_tuned else {})


def load_study(path: Path, *, added_seeds: tuple[int, ...] = ()) -> Study:
    """Reads a study file and checks every arm's run file.

    Raises:
        UsageError: with one sentence per problem.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such study file")
    return make_study(parse_study(read_toml(path), path), path.parent, path.stem, file=path, added_seeds=added_seeds)


def parse_study(values: dict[str, Any], where: Path | str) -> StudyConfig:
    """Validates the content of a study file. Raises UsageError."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(error_messages(error, StudyConfig))
        raise UsageError(f"{where}: {problems}") from None


def make_study(
    config: StudyConfig, folder: Path, name: str, *, file: Path | None = None, added_seeds: tuple[int, ...] = ()
) -> Study:
    """Builds the arms, with ``added_seeds`` beside those of the file. Raises UsageError."""
    where, baseline = file or name, folder / config.baseline
    seeds = (*config.seeds, *(seed for seed in added_seeds if seed not in config.seeds))
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"{where}: seeds = {list(seeds)}: each seed may be listed once")
    num_arms = len(config.interventions) + len(config.stacks)
    num_control = config.control_seeds or round(math.sqrt(num_arms) * len(seeds))
    control = Arm(CONTROL, (), tuple(_more_seeds(seeds, num_control)))
    num_equal = 0
    plain = load_run_file(baseline).config
    tune = folder / config.tune if config.tune else None
    measure = _measure_of(config, plain, tune, where)
    arms = []
    for name_, overrides, note, members in _arms_of(config, where):
        changes = _changes(plain, baseline, overrides, f"{where}: {name_}")
        # Equal configs with equal seeds would be the same runs: an A/A arm needs seeds of its own.
        num_equal += not changes
        own = seeds if changes else tuple(seed + num_equal * EQUAL_ARM_OFFSET for seed in seeds)
        arms.append(Arm(name_, overrides, own, note, members, changes))
    if tune is None and measure == TUNED_LOSS:
        _check_same_targets(arms, where)
    return Study(name, file, baseline, config, control, tuple(arms), tune, measure)


def _measure_of(config: StudyConfig, baseline: RunConfig, tune: Path | None, where: Path | str) -> Measure:
    """Returns what is measured, of the runs of the baseline or of those that tune them. Raises UsageError."""
    tuning = baseline.tune
    if tune is not None:
        if tuning is not None:
            raise UsageError(f"{where}: tune = {config.tune!r}: the baseline has [tune] too; leave one of them out")
        tuned = load_run_file(tune).config
        if tuned.tune is None or tuned.train.start_from is not None:
            raise UsageError(f"{tune}: needs [tune], and no train.start_from: {where} tunes the models of its runs")
        tuning = tuned.tune
    if tuning is None and config.measure != "loss":
        raise UsageError(
            f"{where}: measure = {config.measure!r} is one of classifiers; name a run file with "
            '[tune] kind = "classify" as baseline or as tune'
        )
    if tuning is None:
        return LOSS
    if config.measure != "loss" and not isinstance(tuning, Classify):
        raise UsageError(f"{where}: measure = {config.measure!r} is one of classifiers; write measure = 'loss'")
    if config.smallest_effect is None:
        raise UsageError(f"{where}: a study of tuned models needs smallest_effect, {SMALLEST_EFFECTS}")
    if config.early_stop is not None:
        raise UsageError(f"{where}: early_stop is for studies of pre-training; tuning stops by tune.patience")
    if config.test != TestSlice():
        raise UsageError(f"{where}: test names text of a token store, but tuned models are measured on their test part")
    return CLASSIFIER_MEASURES[config.measure] if isinstance(tuning, Classify) else TUNED_LOSS


def _check_same_targets(arms: list[Arm], where: Path | str) -> None:
    """Raises UsageError for arms whose loss is a mean over other tokens than the baseline's."""
    for arm in arms:
        if changed := [line for line in arm.changes if line.startswith(TARGET_KEYS)]:
            raise UsageError(
                f"{where}: {arm.name} changes {changed[0].partition(':')[0]}, which changes the tokens that the loss "
                "is measured on; answer with 'respond' and compare the answers instead"
            )


def _more_seeds(seeds: tuple[int, ...], count: int) -> list[int]:
    """The first ``count`` seeds of an arm: the given ones, then the next integers."""
    following = range(max(seeds) + 1, max(seeds) + 1 + max(0, count - len(seeds)))
    return [*seeds, *following][:count]


def _arms_of(config: StudyConfig, where: Path | str) -> Iterator[tuple[str, tuple[str, ...], str, tuple[str, ...]]]:
    """Yields name, overrides, note and members of each intervention and stack. Raises UsageError."""
    settings = {}
    for name, table in config.interventions.items():
        _check_arm_name(name, where)
        keys = {key: value for key, value in table.items() if key != NOTE}
        settings[name] = dict(_flatten(keys))
        if "train.seed" in settings[name]:
            raise UsageError(f"{where}: interventions.{name} sets train.seed; the study's 'seeds' decide it")
        yield name, _as_overrides(settings[name]), str(table.get(NOTE, "")), ()
    for name, stack in config.stacks.items():
        _check_arm_name(name, where)
        if name in settings:
            raise UsageError(f"{where}: '{name}' names both an intervention and a stack; rename one")
        if unknown := [member for member in stack.of if member not in settings]:
            raise UsageError(
                f"{where}: stacks.{name}.of = {unknown}: no such intervention; there are {', '.join(settings)}"
            )
        if not stack.ordered:
            _check_clashes(name, {member: settings[member] for member in stack.of}, where)
        merged: dict[str, Any] = {}
        for member in stack.of:
            merged |= settings[member]
        yield name, _as_overrides(merged), stack.note, stack.of


def _check_arm_name(name: str, where: Path | str) -> None:
    if name == CONTROL or not NAME_RULE.fullmatch(name) or len(name) > 60:
        raise UsageError(
            f"{where}: arm {name[:80]!r}: must be at most 60 letters, digits, dots, dashes or underscores, beginning "
            f"with a letter or digit, and not '{CONTROL}'"
        )


def _check_clashes(stack: str, settings: dict[str, dict[str, Any]], where: Path | str) -> None:
    """Raises UsageError where two members set the same key, or one sets a part of what the other sets."""
    for (one, left), (other, right) in combinations(settings.items(), 2):
        for a in left:
            if hits := [b for b in right if a == b or a.startswith(f"{b}.") or b.startswith(f"{a}.")]:
                raise UsageError(
                    f"{where}: stacks.{stack}: '{one}' and '{other}' both set {min(a, hits[0], key=len)}; leave one "
                    "out, or write ordered = true, and the later one counts"
                )


def _flatten(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields key paths and values; a slot with a ``kind`` stays one value."""
    for key, value in table.items():
        if isinstance(value, dict) and value and "kind" not in value:
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _as_overrides(settings: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={to_toml(value)}" for key, value in settings.items())


def _changes(plain: RunConfig, baseline: Path, overrides: tuple[str, ...], where: str) -> tuple[str, ...]:
    try:
        changed = load_run_file(baseline, list(overrides)).config
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return tuple(differences(plain.to_plain(), changed.to_plain()))
