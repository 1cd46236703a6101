"""Models with auxiliary losses, each with the coefficients of its losses by the name in the metrics."""

from typing import Any

AUXILIARY_MODELS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "z-loss": ({"head": {"kind": "chunked", "z_loss": 0.1}}, {"z_loss": 0.1}),
    "z-loss-of-a-linear-head": ({"head": {"kind": "linear", "z_loss": 0.1, "logit_cap": 2.0}}, {"z_loss": 0.1}),
}
