"""Tensors to a safetensors file, piece by piece and in one pass: no second copy, no second reading.

The format: eight bytes of header length, a JSON header, then the tensors' bytes one after another
(https://huggingface.co/docs/safetensors). Anything that reads safetensors reads what is written here.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fromscratch.files import FileFacts, write_checked

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def bytes_of(tensors: dict[str, Tensor]) -> int:
    """Size of the tensors' content."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileFacts:
    """Writes a new safetensors file, puts it on the disk, and returns its size and SHA-256.

    What lies on a device comes to the computer's memory one tensor at a time.
    """
    return write_checked(path, _pieces(tensors))


def file_bytes(tensors: dict[str, Tensor]) -> int:
    """Size of the file that ``write_tensors`` would write."""
    return len(_header(tensors)) + bytes_of(tensors)


def _pieces(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield _header(tensors)
    for name in _ordered(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def _ordered(tensors: dict[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all stay aligned


def _header(tensors: dict[str, Tensor]) -> bytes:
    header, end = {}, 0
    for name in _ordered(tensors):
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
