"""``[tune]``: trains the model ``train.start_from`` further, on a file of records that ``data.store`` names."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

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
    train_examples: Positive | None = None
    """Train on so many records of the training part, drawn by the seed, each class with its share. A smaller number
    draws a part of a larger one's. By default all."""


class Instruct(Tuning):
    """Learns to respond to instructions, from pairs of instruction and response, or from chats."""

    kind: Literal["instruct"] = "instruct"
    prompt: Annotated[PromptFormat, BeforeValidator(named_format)] = PROMPT_FORMATS["alpaca"]
    """The prompt format: ``alpaca``, ``phi3``, ``chatml``, or a template with ``{instruction}`` and ``{input}``.
    By default ``alpaca``."""
    mask_prompt: bool = False
    """Whether only the responses are learned; otherwise the prompts too."""


class Classify(Tuning):
    """Learns to tell the class of a text, by a linear head on the hidden state of its last token."""

    kind: Literal["classify"] = "classify"
    train: Literal["head", "last-block", "all", "lora"] = "all"
    """Which weights are trained: the new head alone, also the last block and the norm after it, all, or the head
    and low-rank additions."""
    balance: Literal["undersample", "weights", "none"] = "undersample"
    """What is done about classes of different sizes: as many texts of each class as the rarest has; a loss weighted
    by the inverse of a class's share; or nothing."""
    text_column: str | None = None
    """Column or key of the text. By default the one with a usual name, such as ``text``."""
    label_column: str | None = None
    """Column or key of the class. By default the one with a usual name, such as ``label``."""
    classes: tuple[str, ...] = Field(default=(), strict=False)
    """The classes, in the order of their scores. By default those of the file, sorted."""
    random_weights: bool = False
    """Whether training begins at random weights instead of those of the model: what is its training worth?"""

    @model_validator(mode="before")
    @classmethod
    def _fill_lora(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("train") == "lora":
            return {"lora": {}, **values}
        return values

    @model_validator(mode="after")
    def _lora_is_meant(self) -> Self:
        if self.lora is not None and self.train != "lora":
            raise ValueError(f'lora needs train = "lora", not {self.train!r}')
        return self
