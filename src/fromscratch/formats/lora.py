"""Low-rank additions in checkpoints, by the names of the package ``peft``, and their sum with the base weights."""

from torch import Tensor, nn

from fromscratch.config.tune import LoRA

BASE_LAYER, DOWN, UP = ".base_layer", ".lora_A.default", ".lora_B.default"


def merge_lora(tensors: dict[str, Tensor], lora: LoRA, model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of the model itself: W + alpha / rank * B A, under the names without additions.

    Args:
        model: without additions; tells which layers store the transpose (transformers' ``Conv1D``).
    """
    merged = {name.replace(BASE_LAYER, ""): t for name, t in tensors.items() if DOWN not in name and UP not in name}
    for name, down in tensors.items():
        if DOWN in name:
            layer = name.partition(DOWN)[0]
            change = lora.alpha / lora.rank * (tensors[name.replace(DOWN, UP)] @ down)
            is_transposed = type(model.get_submodule(layer)).__name__ == "Conv1D"
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + (change.T if is_transposed else change)
    return merged
