"""Architectures of the transformers library that compute what a model of ours computes: no code travels with them.

GPT-2 where norms, positions and network are GPT-2's; Llama, Mistral, Qwen2, Qwen3 or Mixtral where they are RMSNorm,
RoPE and SwiGLU.
"""

from typing import Any

from torch import Tensor

from fromscratch.config.model import GPTConfig
from fromscratch.formats.gpt2 import LAYOUT as GPT2_LAYOUT
from fromscratch.formats.gpt2 import gpt2_config, not_gpt2, to_gpt2_tensors
from fromscratch.formats.llama import to_llama_tensors
from fromscratch.formats.llama_config import llama_config
from fromscratch.formats.published import TABLE_KEY


def native_config(config: GPTConfig) -> dict[str, Any]:
    """Returns the ``config.json`` of the architecture that fits, and in it our ``[model]`` table, for ``import``.

    Either ``not_gpt2`` or ``not_llama`` must be empty.
    """
    keys = llama_config(config) if not_gpt2(config) else gpt2_config(config)
    return {**keys, TABLE_KEY: config.model_dump(mode="json", exclude_none=True)}


def native_tensors(config: GPTConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns our tensors under the names and in the layouts of that architecture."""
    if not_gpt2(config):
        return to_llama_tensors(config, tensors)
    theirs = to_gpt2_tensors(tensors)
    if config.tied_head:
        del theirs[GPT2_LAYOUT.head]
    return theirs
