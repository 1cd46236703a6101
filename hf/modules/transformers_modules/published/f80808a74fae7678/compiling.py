"""Keeps functions out of compiled code without loading the compiler.

``torch.compiler.disable`` does the same, but loads the compiler when the function is defined, which takes
more than a second at the start of every command.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
_marked: list[Callable[..., Any]] = []


def outside_compiled_code(function: Function) -> Function:
    """Marks a function or method that ``torch.compile`` must not trace."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(function)
    _marked.append(function)
    return function


def prepare_to_compile() -> None:
    """Disables compilation of every marked function. Call it before compiling."""
    while _marked:
        function = _marked.pop()
        owner: Any = sys.modules[function.__module__]
        *path, name = function.__qualname__.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, torch.compiler.disable(function))
