"""Reads and writes safetensors files. Writing streams tensor by tensor and hashes in the same pass.

The format is eight bytes of header length, a JSON header, then the bytes of all tensors
(https://huggingface.co/docs/safetensors).
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from fromscratch.errors import DataError
from fromscratch.files import FileEntry, write_checked

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
    """Returns the size of the tensors' content."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    """Writes a new safetensors file, flushes it to disk, and returns its size and SHA-256.

    Tensors on a device are copied to host memory one at a time.
    """
    return write_checked(path, _chunks(tensors))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file. Raises DataError when it is not readable."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error


def tensor_names(path: Path) -> set[str]:
    """Reads the names of the tensors in a safetensors file. Raises DataError when it is not readable."""
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error


def file_bytes(tensors: dict[str, Tensor]) -> int:
    """Returns the size of the file that ``write_tensors`` would write."""
    return len(_header(tensors)) + bytes_of(tensors)


def _chunks(tensors: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield _header(tensors)
    for name in _ordered(tensors):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data


def _ordered(tensors: dict[str, Tensor]) -> list[str]:
    """Returns the names, larger element types first, so that every tensor is aligned in the file."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


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
