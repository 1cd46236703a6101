"""Norms of the gradients of a model on batches of two sizes: what the critical batch is computed from.

Source: McCandlish et al. 2018, "An empirical model of large-batch training", appendix A.1.
"""

from collections.abc import Callable

import torch

from fromscratch.data.batches import SequenceBatches
from fromscratch.data.store import TokenSplit
from fromscratch.errors import DataError, UsageError
from fromscratch.machine.memory import default_micro_batch
from fromscratch.models.language_model import LanguageModel
from fromscratch.training.gradients import Gradients

SMALL_PER_LARGE = 4
"""Small batches per large one: their norms vary more, and they cost little."""


def squared_gradient_norms(
    model: LanguageModel,
    split: TokenSplit,
    *,
    small: int,
    large: int,
    repeats: int,
    seed: int = 0,
    on_batch: Callable[[str], None] = lambda _line: None,
) -> list[tuple[int, float]]:
    """Measures squared norms of the gradient of the mean loss, all at the model's present weights, in fp32.

    Every batch has sequences of its own, drawn from the split without replacement. Dropout is off.

    Args:
        small, large: the two batch sizes, in sequences of the model's context length.
        repeats: number of large batches; there are ``SMALL_PER_LARGE`` times as many small ones.

    Returns:
        (batch size, squared norm) of each batch. Gradients and weights of the model are left as they were.

    Raises:
        UsageError: the sizes are not 0 < small < large, or there are fewer than two batches.
        DataError: the split is too small.
    """
    if not 0 < small < large or repeats < 2:
        raise UsageError(
            f"gradient noise: batches of {small} and {large}, {repeats} of them: needs 0 < small < large, and 2 or more"
        )
    sequences = SequenceBatches(split, model.context_length, 1, shuffle_seed=seed)
    sizes = [*[small] * (SMALL_PER_LARGE * repeats), *[large] * repeats]
    if sum(sizes) > sequences.sequences_per_epoch:
        raise DataError(
            f"split '{split.name}' has {sequences.sequences_per_epoch:,} sequences of {model.context_length} tokens, "
            f"but {repeats} batches of {large} and {SMALL_PER_LARGE * repeats} of {small} need {sum(sizes):,}; take "
            "smaller or fewer batches"
        )
    model.eval()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms, begin = [], 0
    for number, size in enumerate(sizes, start=1):
        on_batch(f"batch {number} of {len(sizes)}: {size} sequences")
        norms.append((size, _squared_norm(model, parameters, sequences, range(begin, begin + size))))
        begin += size
    return norms


def _squared_norm(
    model: LanguageModel, parameters: list[torch.nn.Parameter], sequences: SequenceBatches, indices: range
) -> float:
    device = parameters[0].device
    size = default_micro_batch(device, model.context_length)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for begin in range(0, len(indices), size):
        ids = torch.from_numpy(sequences.read(indices[begin : begin + size])).to(device)  # [b, T + 1]
        loss = model.losses(ids[:, :-1], ids[:, 1:]).sum() / (len(indices) * model.context_length)
        torch._foreach_add_(total, torch.autograd.grad(loss, parameters))
    return float(Gradients(total).norm.double() ** 2)
