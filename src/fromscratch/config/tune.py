"""``[tune]``: trains the model ``train.start_from`` further, on a file of records that ``data.store`` names."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from fromscratch.config.base import NonNegative, Positive, Probability, Table
from fromscratch.config.prompts import PROMPT_FORMATS, PromptFormat, named_format


class LoRA(Table):
    """Trains low-rank additions to the linear layers; all other weights stay as they are (Hu et al. 2021)."""

    rank: Positive = 8
    """Rank of each addition."""
    alpha: float = Field(default=16.0, gt=0.0)
    """Each addition is multiplied by ``alpha / rank``."""


class Tuning(Table):
    """What every kind of fine-tuning has. A kind is a subclass with its ``kind``; ``session/tuning.py`` plans it."""

    patience: NonNegative = 2
    """Evaluations in a row without a lower validation loss that end the run; 0 is off."""
    dropout: Probability | None = None
    """Share of activations dropped in tuning. By default that of the model's training; 0 is off."""
    lora: LoRA | None = None
    """Trains low-rank additions only. Needs the package ``peft``."""
    validation_share: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of the records that the validation loss is measured on."""
    test_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the records that are kept for a test; the run writes them into ``split/test.json``."""


class Instruct(Tuning):
    """Learns to respond to instructions, from pairs of instruction and response, or from chats."""

    kind: Literal["instruct"] = "instruct"
    prompt: Annotated[PromptFormat, BeforeValidator(named_format)] = PROMPT_FORMATS["alpaca"]
    """The prompt format: ``alpaca``, ``phi3``, ``chatml``, or a template with ``{instruction}`` and ``{input}``.
    By default ``alpaca``."""
    mask_prompt: bool = False
    """Whether only the responses are learned; otherwise the prompts too."""
