"""Train, compare and publish small language models.

The functions of ``fromscratch.api`` are available here; nothing heavy is imported before one of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fromscratch.api import (
        Model,
        Run,
        Study,
        compare,
        load_model,
        open_run,
        open_store,
        open_study,
        plan,
        prepare,
        run_study,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "Model",
    "Run",
    "Study",
    "compare",
    "load_model",
    "open_run",
    "open_store",
    "open_study",
    "plan",
    "prepare",
    "run_study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fromscratch import api

        return getattr(api, name)
    raise AttributeError(f"module 'fromscratch' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
