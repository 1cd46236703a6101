"""One of two processes that train together on one device; rank 0 writes the weights. Arguments: rank folder device."""

import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from fromscratch.processes.world import World
from fromscratch.training.parallelism import DataParallel
from fromscratch.training.step import Stepper
from tests.cuda.small import make_stepper, weights_after


def main(rank: int, folder: str, device: str) -> None:
    """Two steps on half of each global batch."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    alone, world = make_stepper(device=torch.device(device), precision="fp32", micro_batch=4), World(rank, 2)
    stepper = Stepper(
        alone.model,
        alone.optimizer,
        replace(alone.batches, world=world),  # type: ignore[type-var]
        loss=alone.loss_module.loss,
        rules=alone.rules,
        precision=alone.precision,
        parallelism=DataParallel(world),
    )
    weights = weights_after(stepper, 2)
    if rank == 0:
        torch.save(weights, f"{folder}/weights.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
