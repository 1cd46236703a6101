"""The loss of a tuned model on the test part of its run, which training never reads."""

from fromscratch.config.loading import read_run_config
from fromscratch.config.tune import Instruct
from fromscratch.errors import UsageError
from fromscratch.finetuning.batches import EpochOrder
from fromscratch.finetuning.instruction import InstructionTuning, encode_examples
from fromscratch.finetuning.records import read_records, to_exchanges
from fromscratch.finetuning.splits import TEST_FILE
from fromscratch.formats.model_sources import LoadedModel
from fromscratch.machine.precision import Precision
from fromscratch.training.objective import Runtime

MICRO_BATCH = 8


def instruction_test_loss(loaded: LoadedModel) -> float:
    """Returns the mean loss in nats per target, as the run measures it on its validation part.

    Raises:
        UsageError: not a run that was tuned on instructions with a test part, or no record fits into the context.
        DataError: the test part is damaged.
    """
    tune = read_run_config(loaded.run.config).tune if loaded.run else None
    if loaded.run is None or not isinstance(tune, Instruct) or not tune.test_share:
        raise UsageError(
            f"model {loaded.source}: is not a run of 'fromscratch finetune instruct' with a test part "
            "(tune.test_share above 0)"
        )
    file = read_records(loaded.run.path / TEST_FILE)
    examples = encode_examples(
        to_exchanges(file),
        loaded.tokenizer,
        tune.prompt,
        mask_prompt=tune.mask_prompt,
        context_length=loaded.config.context_length,
    )
    if not examples.kept:
        raise UsageError(f"{file.path}: no record fits into the context of {loaded.config.context_length:,} tokens")
    order = EpochOrder(examples.lengths, 1, 0, 1)
    measured = InstructionTuning(
        examples, examples, order, loaded.config.context_length, loaded.tokenizer.end_of_text, file.fingerprint
    )
    device = next(loaded.model.parameters()).device
    loss = measured.evaluate(loaded.model, Runtime(device, MICRO_BATCH, Precision("fp32", device)), lambda: False)
    assert loss is not None, "nothing interrupts"
    return loss
