"""What fills the slots of this model; written when it was published."""

from functools import partial

from .head import ChunkedHead
from .layers import GeluMLP, LayerNorm, LearnedPosition
from .mechanism import Slots
from .rotary import RotaryAttention

SLOTS = Slots(
    position=partial(LearnedPosition),
    norm=partial(LayerNorm, eps=1e-05),
    attention=partial(RotaryAttention, base=10000.0),
    feedforward=partial(GeluMLP, ratio=4),
    head=partial(ChunkedHead),
)
