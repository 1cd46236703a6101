"""Train, compare and publish small language models.

The functions of ``fromscratch.api`` and ``fromscratch.tuning`` are available here; nothing heavy is imported before
one of them is used.
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
    from fromscratch.tuning import Classifier, finetune_classify, finetune_instruct, load_classifier, respond

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Model",
    "Run",
    "Study",
    "compare",
    "finetune_classify",
    "finetune_instruct",
    "load_classifier",
    "load_model",
    "open_run",
    "open_store",
    "open_study",
    "plan",
    "prepare",
    "respond",
    "run_study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fromscratch import api, tuning

        return getattr(tuning if name in tuning.__all__ else api, name)
    raise AttributeError(f"module 'fromscratch' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
