"""Reads files of tensors that may come from anywhere: safetensors, or pickles by the restricted reader only."""

import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fromscratch.errors import DataError
from fromscratch.files import read_json_object

SAFETENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
WRAPPERS = ("_orig_mod.", "module.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder's ``model.safetensors``, whole or in shards, as fp32.

    Raises:
        DataError: not readable, damaged, not tensors, or a pickle that wants to run code.
    """
    return as_fp32(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        return _read_folder(path)
    if path.suffix in PICKLE_SUFFIXES:
        found = read_pickle(path)
        return dict(found.get("model_state_dict", found))
    return _read_safetensors(path)


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / SAFETENSORS).is_file():
        return _read_safetensors(folder / SAFETENSORS)
    if (folder / INDEX).is_file():
        names = read_json_object(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(Path(str(name)).name == name for name in names.values()):
            raise DataError(f"{folder / INDEX}: malformed, it has no weight_map of files in this folder")
        shards = [_read_safetensors(folder / name) for name in sorted(set(names.values()))]
        return {key: tensor for shard in shards for key, tensor in shard.items()}
    others = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLE_SUFFIXES))
    if len(others) == 1:
        return _read(others[0])
    named = ", ".join(path.name for path in others) or "none"
    raise DataError(f"{folder}: expected {SAFETENSORS} or one other file of weights; found {named}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable safetensors file ({error})") from error


def read_pickle(path: Path) -> dict[str, Any]:
    """What ``torch.save`` wrote, if it is tensors and plain values alone: nothing in the file is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols: what cannot be read is refused anyway
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first_line = str(error).splitlines()[0]
        raise DataError(
            f"{path}: refused: a pickle that holds more than tensors and plain values can run code when it is read "
            f"({first_line}); save the state dict alone, best as safetensors"
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: not readable by torch ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds {type(found).__name__}, expected tensors by name")
    return found


def as_fp32(tensors: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Floating-point tensors as fp32, without what compiling or distributing put before their names."""
    plain = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise DataError(f"{path}: {key} is {type(tensor).__name__}, expected a tensor")
        name = str(key)
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        plain[name] = tensor.float() if tensor.is_floating_point() else tensor
    return plain


def take(tensors: dict[str, Tensor], names: Iterable[str], path: Path) -> dict[str, Tensor]:
    """The named tensors, all of them floating point. Raises DataError with the names that are missing."""
    names = list(names)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise DataError(f"{path}: missing tensors {missing}")
    for name in names:
        if not tensors[name].is_floating_point():
            raise DataError(f"{path}: {name} holds {tensors[name].dtype}, expected floating-point weights")
    return {name: tensors[name] for name in names}


def refuse_leftovers(tensors: dict[str, Tensor], used: Iterable[str], path: Path) -> None:
    """Raises DataError where a file holds tensors that nobody knows."""
    unexpected = sorted(tensors.keys() - set(used))
    if unexpected:
        raise DataError(f"{path}: unexpected tensors {unexpected}; this is not the architecture it seems to be")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, each once even if several modules share it. They share memory with the model."""
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


@torch.no_grad()
def fill(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copies tensors into a model. Raises DataError where names or shapes differ; the message lists them."""
    targets = dict(model.named_parameters())
    missing, unexpected = sorted(targets.keys() - tensors.keys()), sorted(tensors.keys() - targets.keys())
    if missing or unexpected:
        raise DataError(f"{where}: missing tensors {missing or 'none'}, unexpected tensors {unexpected or 'none'}")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise DataError(f"{where}: {name} is {list(tensors[name].shape)}, but the model needs {list(target.shape)}")
        target.copy_(tensors[name])
