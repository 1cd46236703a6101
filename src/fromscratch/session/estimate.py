"""What a run file will take, before anything is spent: tokens, memory, disk, hours, dollars. Writes no files."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fromscratch.config.loading import RunFile, load_run_file
from fromscratch.config.run import RunConfig
from fromscratch.data.hub_store import locate_store
from fromscratch.data.lanes import LaneBatches
from fromscratch.errors import UsageError
from fromscratch.formats.stores import open_named_store, tokenizer_of
from fromscratch.hub.names import has_hub_prefix
from fromscratch.machine.hardware import Hardware, find_hardware
from fromscratch.models.costs import ModelCosts, model_costs
from fromscratch.planning.bench import Workload
from fromscratch.planning.fit import memory_budget_bytes
from fromscratch.planning.forecast import ASSUMED_MFU, MachineForecast, forecast_machine
from fromscratch.planning.machines import Machine, find_machines
from fromscratch.planning.memory_model import Bytes, MemoryForecast, forecast_memory
from fromscratch.planning.speeds import measured_speeds
from fromscratch.session.disk import checkpoint_bytes, checkpoints_at_once
from fromscratch.session.epochs import check_patience, once_per_epoch
from fromscratch.session.plan import (
    budget_tokens,
    check_document_mask,
    check_prompts,
    check_schedule,
    planned_steps,
    resolve_vocabulary,
    training_sequences,
)
from fromscratch.tokenizers.gpt2 import GPT2_VOCABULARY_SIZE

CHINCHILLA_TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, table 3
HERE = "here"


@dataclass(frozen=True)
class Science:
    """The part of an estimate that no machine changes."""

    config: RunConfig
    """Resolved: vocabulary and tokens are numbers."""
    costs: ModelCosts
    num_steps: int
    store_problem: str
    """Why the store was not opened; empty if it was."""
    vocabulary_is_assumed: bool

    @property
    def tokens_per_step(self) -> int:
        """Of a whole global batch; a batch ramp begins with less."""
        return self.config.train.global_batch * self.config.model.context_length

    @property
    def tokens(self) -> int:
        return self.config.train.batch_sizes.before(self.num_steps) * self.config.model.context_length

    @property
    def parameters_at_end(self) -> int:
        """Parameters of the model at the end, whose head may have been untied by then."""
        return model_costs(self.config.train.last_model(self.config.model)).parameters

    @property
    def chinchilla_tokens(self) -> int:
        """The budget that Hoffmann et al. 2022 find optimal, about 20 tokens per parameter."""
        return CHINCHILLA_TOKENS_PER_PARAMETER * self.costs.parameters

    @property
    def chinchilla_steps(self) -> int:
        """The steps of that budget, rounded up to whole global batches."""
        return _steps_for(self.chinchilla_tokens, self.config)

    @property
    def chinchilla_tokens_rounded(self) -> int:
        """The tokens of those steps."""
        return self.config.train.batch_sizes.before(self.chinchilla_steps) * self.config.model.context_length


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    science: Science
    memory: dict[str, Bytes]
    """Peak memory with a micro-batch of one sequence, by kind of device."""
    memory_per_sequence: dict[str, float]
    """Further bytes per sequence in the micro-batch, by kind of device."""
    checkpoint_bytes: int
    checkpoints_at_once: int
    machines: list[MachineForecast]


def estimate_run(
    file: Path, overrides: list[str] | None = None, *, machines: list[str] | None = None, mfu: float = ASSUMED_MFU
) -> Estimate:
    """Estimates what a run file takes on each machine.

    Args:
        machines: names; None means this machine (``here``) and all known ones.
        mfu: share of a GPU's peak that is assumed where ``bench`` has not measured.

    Raises:
        UsageError: the run file, a name or the user's file of machines is not valid.
        DataError: the store is damaged, or too small for the budget.
    """
    wants_here = machines is None or HERE in machines
    named = [name for name in machines if name != HERE] if machines is not None else None
    known = find_machines(named) if named is None or named else {}
    science = read_science(load_run_file(file, overrides), file)
    config = science.config
    workload = Workload.of(config)
    hardware = find_hardware()
    process_bytes = find_hardware("cpu").peak_memory_bytes()

    @cache
    def memory(device_type: str) -> MemoryForecast:
        return forecast_memory(workload, device_type, process_bytes=process_bytes)

    forecasts = []
    speeds = measured_speeds(workload)
    for name, machine in {**({HERE: this_machine(hardware)} if wants_here else {}), **known}.items():
        budget = memory_budget_bytes(hardware) if name == HERE else None
        forecasts.append(
            forecast_machine(
                name,
                machine,
                workload,
                tokens=science.tokens,
                speeds=speeds,
                memory=memory,
                mfu=mfu,
                budget_bytes=budget,
            )
        )
    kinds = dict.fromkeys("cpu" if machine.device == "cpu" else "cuda" for machine in known.values())
    if wants_here:
        kinds[hardware.device.type if hardware.device.type == "cpu" else "cuda"] = None
    lines = {kind: memory(kind) for kind in kinds}
    return Estimate(
        science=science,
        memory={kind: line.at(1) for kind, line in lines.items()},
        memory_per_sequence={kind: line.bytes_per_sequence for kind, line in lines.items()},
        checkpoint_bytes=checkpoint_bytes(config, lambda model, count: model.initial_carry(count)),
        checkpoints_at_once=checkpoints_at_once(config.train, science.num_steps),
        machines=forecasts,
    )


def this_machine(hardware: Hardware) -> Machine:
    """This machine, without a price."""
    return Machine(device="cpu" if hardware.device.type == "cpu" else hardware.name)


def read_science(run_file: RunFile, file: Path) -> Science:
    """Resolves a run file with its store; without one, takes GPT-2's vocabulary. Downloads nothing.

    Raises:
        UsageError: the run file is not valid, or asks for what ``train`` would refuse.
        DataError: the store is damaged, or too small for the budget.
    """
    config, folder = run_file.config, run_file.folders["data.store"]
    config.check_is_pretraining(str(file))
    problem = _why_not_opened(config.data.store, folder)
    if not problem:
        store = open_named_store(config.data.store, folder)
        tokenizer = tokenizer_of(store)
        vocab_size = resolve_vocabulary(config, store, tokenizer, file)
        check_document_mask(config, tokenizer, str(file))
    else:
        vocab_size = config.model.vocab_size or GPT2_VOCABULARY_SIZE
    costs = model_costs(config.model.model_copy(update={"vocab_size": vocab_size}))
    if not problem:
        sequences = training_sequences(config, store)
        num_steps = planned_steps(config.data.tokens, sequences, costs)
        if isinstance(sequences, LaneBatches):
            config = once_per_epoch(config, sequences.steps_per_epoch, samples=True)
        check_patience(config, str(file))
        check_prompts(config, tokenizer, str(file))
    elif config.data.tokens == "all":
        raise UsageError(
            f'{file}: data.tokens = "all": only the store knows how many, and {problem}; prepare it, or plan with a '
            "number: --set data.tokens=20x"
        )
    else:
        num_steps = _steps_for(budget_tokens(config.data.tokens, costs.parameters), config)
    tokens = config.train.batch_sizes.before(num_steps) * config.model.context_length
    resolved = config.resolved(vocab_size=vocab_size, tokens=tokens)
    check_schedule(resolved, num_steps, str(file))
    return Science(
        config=resolved,
        costs=costs,
        num_steps=num_steps,
        store_problem=problem,
        vocabulary_is_assumed=bool(problem) and config.model.vocab_size is None,
    )


def _steps_for(tokens: int, config: RunConfig) -> int:
    """Returns the steps of a budget, rounded up to whole global batches."""
    return config.train.batch_sizes.steps_for(-(-tokens // config.model.context_length))


def _why_not_opened(store: str, folder: Path) -> str:
    """Says why a store cannot be opened without a download; empty if it can."""
    if has_hub_prefix(store):
        return f"store {store} is on the Hub, and plan downloads nothing"
    path = locate_store(store, folder)
    return "" if path.exists() else f"store {path} does not exist yet"
