"""What a process holds of a parameter that several processes divide among them, as an optimiser sees it."""

from collections.abc import Callable

from torch import Tensor, nn


class ParameterPart(nn.Parameter):
    """The rows of this process. An optimiser that needs a whole matrix gathers it; ``muon.py`` does.

    Attributes:
        whole_of: from tensors like this part, one in every process, to the whole. All processes call it together.
        rows_of: this process's rows of a tensor like the whole.
    """

    whole_of: Callable[[Tensor], Tensor]
    rows_of: Callable[[Tensor], Tensor]
