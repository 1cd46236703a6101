"""Models with auxiliary losses, each with the coefficients of its losses by the name in the metrics."""

from typing import Any

AUXILIARY_MODELS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "z-loss": ({"head": {"kind": "chunked", "z_loss": 0.1}}, {"z_loss": 0.1}),
    "z-loss-of-a-linear-head": ({"head": {"kind": "linear", "z_loss": 0.1, "logit_cap": 2.0}}, {"z_loss": 0.1}),
    "mixture": (
        {"feedforward": {"kind": "mixture", "experts": 4, "hidden_dim": 12, "balance_loss": 0.2, "router_z_loss": 0.1}},
        {"balance_loss": 0.2, "router_z_loss": 0.1},
    ),
    "mixture-with-a-capacity": (
        {
            "feedforward": {"kind": "mixture", "experts": 3, "active_experts": 1, "capacity": 0.7, "balance_loss": 0.2},
            "head": {"kind": "chunked", "z_loss": 0.1},
        },
        {"balance_loss": 0.2, "router_z_loss": 0.001, "dropped_share": 0.0, "z_loss": 0.1},
    ),
}
