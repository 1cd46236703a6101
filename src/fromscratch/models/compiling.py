"""What compiled code must call as it stands, at no cost to those who do not compile.

``torch.compiler.disable`` says so too, but loads the compiler where the function is defined: more than
a second at the start of every command.
"""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
_marked: list[Callable[..., Any]] = []


def outside_compiled_code(function: Function) -> Function:
    """Marks a function or a method that ``torch.compile`` must not look into."""
    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(function)
    _marked.append(function)
    return function


def prepare_to_compile() -> None:
    """Puts every marked function out of the compiler's sight; to be called before compiling."""
    while _marked:
        function = _marked.pop()
        owner: Any = sys.modules[function.__module__]
        *path, name = function.__qualname__.split(".")
        for part in path:
            owner = getattr(owner, part)
        setattr(owner, name, torch.compiler.disable(function))
