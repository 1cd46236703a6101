"""Models with auxiliary losses, each with the coefficients of its losses by the name in the metrics."""

from typing import Any

AUXILIARY_MODELS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "z-loss": ({"head": {"kind": "chunked", "z_loss": 0.1}}, {"z_loss": 0.1}),
    "z-loss-of-a-linear-head": ({"head": {"kind": "linear", "z_loss": 0.1, "logit_cap": 2.0}}, {"z_loss": 0.1}),
    "mixture": (
        {"feedforward": {"kind": "mixture", "experts": 4, "hidden_dim": 12, "balance_loss": 0.2, "router_z_loss": 0.1}},
        {"balance_loss": 0.2, "router_z_loss": 0.1},
    ),
    "multi-token": (
        {"multi_token": {"kind": "blocks", "tokens": 2, "coefficient": 0.4}, "position": "rope"},
        {"multi_token_loss": 0.4},
    ),
    "everything": (
        {
            "preset": "nanochat-like-small",
            "feedforward": {"kind": "mixture", "experts": 3, "hidden_dim": 12},
            "multi_token": {"kind": "blocks", "coefficient": 0.4},
            "head": {"kind": "chunked", "z_loss": 0.1, "logit_cap": 3.0},
        },
        {"balance_loss": 0.01, "router_z_loss": 0.001, "multi_token_loss": 0.4, "z_loss": 0.1},
    ),
    "mixture-with-a-capacity": (
        {
            "feedforward": {"kind": "mixture", "experts": 3, "active_experts": 1, "capacity": 0.7, "balance_loss": 0.2},
            "head": {"kind": "chunked", "z_loss": 0.1},
        },
        {"balance_loss": 0.2, "router_z_loss": 0.001, "dropped_share": 0.0, "z_loss": 0.1},
    ),
}
