"""Reads weights from untrusted files: safetensors, or pickles by torch's restricted reader."""

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fromscratch.errors import DataError
from fromscratch.files import read_json_object
from fromscratch.formats.tensor_files import read_tensors
from fromscratch.models.language_model import LanguageModel

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
"""Parts of names that torch.compile, activation checkpointing and FSDP add, at any depth."""
OUTER_WRAPPER = "module"
"""First part of names that DistributedDataParallel and older FSDP add."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file, or of a folder's ``model.safetensors``, in one file or in shards, as fp32.

    Raises:
        DataError: the file is unreadable, damaged, holds no tensors, or is a pickle that could run code.
    """
    return as_fp32(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return _read_folder(path)
    if path.suffix in PICKLE_SUFFIXES:
        found = read_pickle(path)
        return dict(found.get("model_state_dict", found))
    return read_tensors(path)


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / SAFETENSORS).is_file():
        return read_tensors(folder / SAFETENSORS)
    if (folder / INDEX).is_file():
        names = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(Path(str(name)).name == name for name in names.values()):
            raise DataError(f"{folder / INDEX}: malformed, it has no weight_map of files in this folder")
        shards = [read_tensors(folder / name) for name in sorted(set(names.values()))]
        return {key: tensor for shard in shards for key, tensor in shard.items()}
    others = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES)
    if len(others) == 1:
        return _read(others[0])
    named = ", ".join(path.name for path in others) or "none"
    raise DataError(f"{folder}: expected {SAFETENSORS} or one other file of weights; found {named}")


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a file of ``torch.save`` that holds only tensors and plain values. Executes no code of the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols; unreadable files raise an error
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first_line = str(error).splitlines()[0]
        raise DataError(
            f"{path}: refused: a pickle that holds more than tensors and plain values can run code when it is read "
            f"({first_line}); save only the state dict, preferably as safetensors"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: not readable by torch ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {type(found).__name__}, expected tensors by name")
    return found


def as_fp32(tensors: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Returns floating-point tensors as fp32, without what wrappers of torch add to their names.

    Raises:
        DataError: not tensors, or two that differ only in what a wrapper adds.
    """
    plain = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise DataError(f"{path}: {key} is {type(tensor).__name__}, expected a tensor")
        name = plain_name(str(key))
        if name in plain:
            raise DataError(f"{path}: holds {name} twice, under names of different wrappers")
        plain[name] = tensor.float() if tensor.is_floating_point() else tensor
    return plain


def plain_name(name: str) -> str:
    """Returns the name of a parameter without what wrappers of torch add to it, in any order."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] == OUTER_WRAPPER:
        del parts[0]
    return ".".join(parts)


def take(tensors: dict[str, Tensor], names: Iterable[str], path: Path) -> dict[str, Tensor]:
    """Returns the named tensors. Raises DataError where one is missing or is not floating point."""
    names = list(names)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise DataError(f"{path}: missing tensors {missing}")
    for name in names:
        if not tensors[name].is_floating_point():
            raise DataError(f"{path}: {name} holds {tensors[name].dtype}, expected floating-point weights")
    return {name: tensors[name] for name in names}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights by name; a shared weight appears once. They share memory with the model."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def head_name(model: LanguageModel) -> str:
    """Returns the name of the weight of the output head, where that is a linear layer without a bias."""
    (name,) = model.head_parameters()
    return name


HEAD_STD = 0.02  # GPT-2's, and that of transformers' heads


def first_head_weights(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Returns first weights of a new head: normal matrices, biases of 0, and gains of 1."""
    if len(shape) > 1:
        return torch.empty(shape).normal_(std=HEAD_STD, generator=generator)
    return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)


def fill(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copies tensors into a model. Raises DataError where names or shapes differ."""
    fill_tensors(dict(model.named_parameters()), tensors, where)


@torch.no_grad()
def fill_tensors(targets: Mapping[str, Tensor], tensors: dict[str, Tensor], where: Path) -> None:
    """Copies tensors into others of the same names. Raises DataError where names or shapes differ."""
    missing, unexpected = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or unexpected:
        raise DataError(f"{where}: missing tensors {missing or 'none'}, unexpected tensors {unexpected or 'none'}")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise DataError(f"{where}: {name} is {list(tensors[name].shape)}, but the model needs {list(target.shape)}")
        target.copy_(tensors[name])
