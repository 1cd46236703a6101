"""Prompt formats of instruction tuning: the text around an instruction and its response."""

from typing import Any, Self

from pydantic import model_validator

from fromscratch.config.base import Table

INSTRUCTION, INPUT, SYSTEM = "{instruction}", "{input}", "{system}"


class PromptFormat(Table):
    """The text around instructions and responses. A short name stands for one of ``PROMPT_FORMATS``."""

    introduction: str = ""
    """The text before the first instruction."""
    system: str = ""
    """The text of a system message, with ``{system}``. Empty: it is put before the first instruction."""
    turn: str
    """An instruction and the text between it and its response, with ``{instruction}``."""
    turn_with_input: str = ""
    """The same for an instruction with an input, with ``{instruction}`` and ``{input}``. Empty: the input follows
    the instruction on a line of its own."""
    ending: str = ""
    """The text after each response; generation stops there, and at the end of text."""

    @model_validator(mode="after")
    def _has_its_fields(self) -> Self:
        needed = {"turn": (INSTRUCTION,), "turn_with_input": (INSTRUCTION, INPUT), "system": (SYSTEM,)}
        for name, fields in needed.items():
            text = getattr(self, name)
            missing = [field for field in fields if field not in text]
            if missing and (text or name == "turn"):
                raise ValueError(f"{name} = {text!r} must contain {' and '.join(missing)}")
        return self

    def prompt(self, instruction: str, input_text: str = "", *, system: str = "", is_first: bool = True) -> str:
        """Returns the text before a response. The introduction and the system message stand before the first only."""
        if not is_first:
            return self._turn(instruction, input_text)
        if system and not self.system:
            instruction, system = f"{system}\n\n{instruction}", ""
        before = self.introduction + (self.system.replace(SYSTEM, system) if system else "")
        return before + self._turn(instruction, input_text)

    def _turn(self, instruction: str, input_text: str) -> str:
        if not input_text:
            return self.turn.replace(INSTRUCTION, instruction)
        if not self.turn_with_input:
            return self.turn.replace(INSTRUCTION, f"{instruction}\n{input_text}")
        before, _, after = self.turn_with_input.partition(INPUT)  # the texts themselves may spell the fields
        return before.replace(INSTRUCTION, instruction) + input_text + after.replace(INSTRUCTION, instruction)


PROMPT_FORMATS = {
    "alpaca": PromptFormat(
        introduction=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        turn="\n\n### Instruction:\n{instruction}\n\n### Response:\n",
        turn_with_input="\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    "phi3": PromptFormat(
        system="<|system|>\n{system}<|end|>\n",
        turn="<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
        ending="<|end|>\n",
    ),
    "chatml": PromptFormat(
        system="<|im_start|>system\n{system}<|im_end|>\n",
        turn="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
        ending="<|im_end|>\n",
    ),
}
"""Taori et al. 2023 (Stanford Alpaca), Abdin et al. 2024 (Phi-3), OpenAI's ChatML."""


def named_format(value: Any) -> Any:
    """Turns a short name, or the text of a turn, into a format; other values are left to validation."""
    if not isinstance(value, str):
        return value
    if value in PROMPT_FORMATS:
        return PROMPT_FORMATS[value]
    if INSTRUCTION not in value:
        raise ValueError(
            f"must be {', '.join(PROMPT_FORMATS)}, or a template that contains {INSTRUCTION}, not {value[:60]!r}"
        )
    with_input = value if INPUT in value else ""
    return {"turn": value.replace(INPUT, ""), "turn_with_input": with_input}
