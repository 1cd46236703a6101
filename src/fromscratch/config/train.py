"""``[train]``: optimiser, schedule, clipping, and policies for steps that fail."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from fromscratch.config.averages import Averages
from fromscratch.config.base import (
    LARGEST_WHOLE_NUMBER,
    SLOT,
    NonNegative,
    Positive,
    Slot,
    SlotMarker,
    Switch,
    Table,
)
from fromscratch.config.batch_sizes import BatchRamp, BatchSizes

M = TypeVar("M", bound=Table)


class AdamW(Slot):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    builds: ClassVar[str] = "fromscratch.optim.adamw:build_adamw"
    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(default=6e-4, gt=0.0)
    """The full rate, which the schedule multiplies by a factor of at most 1."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Share of a weight removed per step, times the learning rate; 0 is off."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: matrices and embeddings only (GPT-2 practice), or every parameter (torch's default)."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-8, gt=0.0)
    cautious: Switch = False
    """Whether a weight decays only where the update does not move it away from zero (Chen et al. 2025)."""


class Muon(Slot):
    """Muon for matrices inside of the model, AdamW for embeddings, head, norms and biases (Jordan et al. 2024)."""

    builds: ClassVar[str] = "fromscratch.optim.muon:build_muon"
    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(default=0.02, gt=0.0)
    """The full rate of the matrices: the length of an update of a square matrix in spectral norm."""
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Share of a matrix removed per step, times the learning rate; 0 is off."""
    adamw_learning_rate: float = Field(default=6e-4, gt=0.0)
    """The full rate of head, norms and biases."""
    embedding_learning_rate: float | None = Field(default=None, gt=0.0)
    """The full rate of token and position embeddings. Default: ``adamw_learning_rate``."""
    adamw_weight_decay: float = Field(default=0.0, ge=0.0)
    """Share of an embedding or head removed per step, times its learning rate; 0 is off."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-8, gt=0.0)
    cautious: Switch = False
    """Whether a weight decays only where the update does not move it away from zero (Chen et al. 2025)."""


class Lion(Slot):
    """The sign of an average of gradients (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms")."""

    builds: ClassVar[str] = "fromscratch.optim.lion:build_lion"
    kind: Literal["lion"] = "lion"
    learning_rate: float = Field(default=1e-4, gt=0.0)
    """The full rate; 3 to 10 times less than AdamW's."""
    weight_decay: float = Field(default=1.0, ge=0.0)
    """Share of a weight removed per step, times the learning rate; 3 to 10 times AdamW's. 0 is off."""
    decay: Literal["matrices", "all"] = "matrices"
    """What decays: matrices and embeddings only, or every parameter."""
    cautious: bool = False
    """Whether a weight decays only where the update does not move it away from zero (Chen et al. 2025)."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)


class SGD(Slot):
    """Stochastic gradient descent with momentum: the plainest baseline."""

    builds: ClassVar[str] = "fromscratch.optim.sgd:build_sgd"
    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=0.1, gt=0.0)
    """The full rate."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Share of the last update that is kept; 0 is off."""
    nesterov: bool = False
    """Whether the gradient is that of where momentum leads (Nesterov 1983)."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Share of a weight removed per step, times the learning rate; 0 is off."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov = true needs momentum above 0; change either")
        return self


class Schedule(Slot):
    """What every schedule has: a linear warm-up from zero."""

    warmup_steps: NonNegative = 0
    """Steps until the full learning rate; 0 is none."""

    def min_steps(self) -> int:
        """Number of steps that a run must have at least for the schedule to fit."""
        return self.warmup_steps

    def rate_factor(self, learning_rate: float) -> Callable[..., float]:
        """Builds the schedule: a function of ``step`` and ``num_steps``, which returns a factor on every group's rate.

        Args:
            learning_rate: the full rate, of which ``min_learning_rate`` becomes a share.
        """
        schedule = self.maker()
        settings = dict(schedule.keywords)
        if (minimum := settings.pop("min_learning_rate", None)) is not None:
            settings["min_factor"] = minimum / learning_rate
        return partial(schedule.func, **settings)


class Constant(Schedule):
    """The same learning rate throughout."""

    builds: ClassVar[str] = "fromscratch.optim.schedules:constant"
    kind: Literal["constant"] = "constant"


class Linear(Schedule):
    """Falls in a straight line to the minimum at the end of the run."""

    builds: ClassVar[str] = "fromscratch.optim.schedules:linear"
    kind: Literal["linear"] = "linear"
    min_learning_rate: float = Field(default=0.0, ge=0.0)


class WarmupCosine(Schedule):
    """Half a cosine from the full rate to the minimum (Loshchilov and Hutter 2017, without restarts)."""

    builds: ClassVar[str] = "fromscratch.optim.schedules:warmup_cosine"
    kind: Literal["warmup-cosine"] = "warmup-cosine"
    min_learning_rate: float = Field(default=0.0, ge=0.0)


class WarmupStableDecay(Schedule):
    """The full rate, then a straight line down over the last ``decay_steps`` (Hu et al. 2024, MiniCPM)."""

    builds: ClassVar[str] = "fromscratch.optim.schedules:warmup_stable_decay"
    kind: Literal["wsd"] = "wsd"
    decay_steps: Positive
    """Steps of the final decay."""
    min_learning_rate: float = Field(default=0.0, ge=0.0)

    def min_steps(self) -> int:
        return self.warmup_steps + self.decay_steps


class InverseSquareRoot(Schedule):
    """The full rate at the end of the warm-up, then in proportion to 1 / sqrt(step) (Vaswani et al. 2017, section 5.3).

    Independent of the length of the run.
    """

    builds: ClassVar[str] = "fromscratch.optim.schedules:inverse_square_root"
    kind: Literal["inverse-sqrt"] = "inverse-sqrt"
    warmup_steps: Positive
    """Steps until the full learning rate, from which it falls."""


class NoClip(Slot):
    """No clipping."""

    builds: ClassVar[str] = "fromscratch.training.gradients:NoClip"
    kind: Literal["none"] = "none"


class ClipByNorm(Slot):
    """Scales all gradients down together where their joint Euclidean norm exceeds ``max_norm``."""

    builds: ClassVar[str] = "fromscratch.training.gradients:ClipByNorm"
    kind: Literal["norm"] = "norm"
    max_norm: float = Field(default=1.0, gt=0.0)


class ClipByValue(Slot):
    """Limits each gradient element to plus or minus ``max_value``."""

    builds: ClassVar[str] = "fromscratch.training.gradients:ClipByValue"
    kind: Literal["value"] = "value"
    max_value: float = Field(default=1.0, gt=0.0)


class SkipNonfinite(Slot):
    """Skips a step whose gradients are not finite: weights and optimiser state are unchanged. The schedule advances."""

    builds: ClassVar[str] = "fromscratch.training.nonfinite:Skip"
    kind: Literal["skip"] = "skip"
    max_in_a_row: Positive = 10
    """Number of such steps in a row that end the run as diverged."""


class RaiseNonfinite(Slot):
    """Ends the run at the first step whose gradients are not finite. That step changes nothing."""

    builds: ClassVar[str] = "fromscratch.training.nonfinite:Raise"
    kind: Literal["raise"] = "raise"


class RandomStepNonfinite(Slot):
    """Moves the weights in a random direction instead (Goodfellow et al. 2016, 10.11.1).

    Reads the outcome on the host in every step, which waits for the device.
    """

    builds: ClassVar[str] = "fromscratch.training.nonfinite:RandomStep"
    kind: Literal["random-step"] = "random-step"
    norm: float = Field(default=0.01, gt=0.0)
    """Length of the random step, over all weights together."""
    max_in_a_row: Positive = 10
    """Number of such steps in a row that end the run as diverged."""


class ApplyNonfinite(Slot):
    """Takes the step anyway, which usually ruins the weights. A baseline for the other policies."""

    builds: ClassVar[str] = "fromscratch.training.nonfinite:Apply"
    kind: Literal["apply"] = "apply"
    max_in_a_row: Positive = 10
    """Number of such steps in a row that end the run as diverged."""


class NoSpikes(Slot):
    """No detection of loss spikes."""

    builds: ClassVar[str] = "fromscratch.training.spikes:Off"
    kind: Literal["off"] = "off"


class _Spike(Slot):
    window: int = Field(default=128, ge=16)
    """Number of recent losses to compare with. Until half of them are there, no loss is a spike."""
    deviations: float = Field(default=6.0, gt=0.0)
    """Number of standard deviations above their mean that make a loss a spike."""


class WarnOfSpikes(_Spike):
    """Records spikes."""

    builds: ClassVar[str] = "fromscratch.training.spikes:Warn"
    kind: Literal["warn"] = "warn"


class SkipSpikes(_Spike):
    """Skips the step of a spike. Reads the loss on the host in every step, which waits for the device."""

    builds: ClassVar[str] = "fromscratch.training.spikes:Skip"
    kind: Literal["skip"] = "skip"


class RollBackSpikes(_Spike):
    """Goes back to the last checkpoint after a spike, and skips the batches up to it.

    Source: Chowdhery et al. 2022 (PaLM), section 5.1.
    """

    builds: ClassVar[str] = "fromscratch.training.spikes:RollBack"
    kind: Literal["rollback"] = "rollback"


class StartFrom(Table):
    """Another model, whose weights this run starts from. ``start_from = "MODEL"`` is the short form."""

    model: str = Field(min_length=1)
    """A run, a checkpoint, a folder, or a name on the Hub, as on the command line."""
    optimizer: bool = False
    """Whether to load its optimiser state too. Only checkpoints of runs have one."""


def _check_place(value: Any) -> Any:
    """Runs before the union is validated, so that a wrong value gives one error and not one per branch."""
    is_step = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_WHOLE_NUMBER
    if not is_step and not (isinstance(value, float) and 0.0 < value < 1.0):
        raise ValueError("must be a number of steps above 0, or a share of the run between 0 and 1, such as 0.5")
    return value


def _name_alone(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else value


class TrainConfig(Table):
    """Training: batch, precision, optimiser, schedule, and how often to evaluate, sample and save."""

    global_batch: Positive = 96
    """Sequences per optimiser step, whatever the machine."""
    batch_ramp: BatchRamp | None = None
    """Smaller global batches at the beginning. The learning rate's schedule, evaluations and checkpoints count steps,
    whatever their size; ``data.tokens`` counts tokens. Without it, all steps take ``global_batch`` sequences."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "bf16"
    """Arithmetic of matrix products; weights and optimiser state are always fp32."""
    seed: NonNegative = 42
    """Names every random stream of the run: initial weights, dropout, order of the data."""
    start_from: Annotated[StartFrom | None, BeforeValidator(_name_alone)] = None
    """A model to start from, with this file's data, schedule and budget. Without it, weights are drawn at random."""
    evaluate_every: NonNegative = 500
    """Steps between held-out evaluations; 0 is never."""
    sample_every: NonNegative = 0
    """Steps between samples of text; 0 is never."""
    checkpoint_every: NonNegative = 500
    """Steps between checkpoints; 0 saves only at the end."""
    patience: NonNegative | None = None
    """Evaluations in a row without a lower held-out loss that end the run; left out or 0: it takes all its steps.
    Needs a checkpoint at every evaluation. With ``[tune]``, use ``tune.patience``."""
    keep_checkpoints: Positive = 2
    """Number of newest checkpoints that are kept, beside the best one."""
    untie_head_at: Annotated[int | float | None, BeforeValidator(_check_place)] = None
    """From here on a tied head has a matrix of its own, which begins as a copy of the embedding, with its optimiser
    state: a number of steps, or a share of the run such as 0.5. Without it, a tied head stays tied."""
    averages: Averages | None = None
    """Averages of the weights beside the weights themselves, such as ``{ ema = 0.999, tail = 0.2 }``."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = Field(default=(), strict=False, exclude=True)
    """Other tools that receive the metrics, each installed by you. They do not change the run or its identity."""
    optimizer: Annotated[AdamW | Muon | Lion | SGD, SlotMarker("adamw")] = AdamW()
    schedule: Annotated[Constant | Linear | WarmupCosine | WarmupStableDecay | InverseSquareRoot, SLOT] = Constant()
    clip: Annotated[NoClip | ClipByNorm | ClipByValue, SLOT] = NoClip()
    nonfinite: Annotated[SkipNonfinite | RaiseNonfinite | RandomStepNonfinite | ApplyNonfinite, SLOT] = SkipNonfinite()
    spike: Annotated[NoSpikes | WarnOfSpikes | SkipSpikes | RollBackSpikes, SLOT] = NoSpikes()

    @property
    def batch_sizes(self) -> BatchSizes:
        """The number of sequences of every step."""
        return BatchSizes(self.global_batch, self.batch_ramp)

    def untie_step(self, num_steps: int) -> int | None:
        """Returns the number of steps with a tied head, of a run of ``num_steps``; None where it stays as it is."""
        place = self.untie_head_at
        return max(1, round(place * num_steps)) if isinstance(place, float) else place

    def last_model(self, model: M) -> M:
        """Returns the model as it is at the end of the run, when it has the most parameters."""
        return model if self.untie_head_at is None else model.model_copy(update={"tied_head": False})

    def average_rules(self) -> dict[str, Any]:
        """Returns the rules of ``averages`` by name; empty without it."""
        return self.averages.build() if self.averages else {}

    @model_validator(mode="after")
    def _never_goes_back_to_a_tied_head(self) -> Self:
        if self.untie_head_at is not None and isinstance(self.spike, RollBackSpikes):
            raise ValueError('spike = "rollback" could go back behind untie_head_at; use spike = "skip", or remove one')
        return self

    @model_validator(mode="after")
    def _ramp_reaches_the_global_batch(self) -> Self:
        ramp = self.batch_ramp
        if ramp is None:
            return self
        if ramp.start >= self.global_batch or (self.global_batch - ramp.start) % ramp.increment:
            raise ValueError(
                f"batch_ramp from start = {ramp.start} in stages of increment = {ramp.increment} does not reach "
                f"global_batch = {self.global_batch}; choose an increment that divides {self.global_batch - ramp.start}"
                if ramp.start < self.global_batch
                else f"batch_ramp.start = {ramp.start} must be below global_batch = {self.global_batch}"
            )
        if isinstance(self.spike, RollBackSpikes):
            raise ValueError(
                'spike = "rollback" skips batches, which batch_ramp cannot count; use spike = "skip", or remove one'
            )
        return self

    @model_validator(mode="after")
    def _minimum_below_maximum(self) -> Self:
        minimum = getattr(self.schedule, "min_learning_rate", 0.0)
        if minimum > self.optimizer.learning_rate:
            raise ValueError(
                f"schedule.min_learning_rate = {minimum} must not be above optimizer.learning_rate = "
                f"{self.optimizer.learning_rate}"
            )
        return self
