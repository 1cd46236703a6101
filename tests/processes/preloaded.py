"""Everything that a run imports, loaded once by the fork server of ``forked.py``."""

import matplotlib.figure  # noqa: F401
import pytest.__main__  # noqa: F401  (a fork imports the main module of the tests)
import torch.distributed.run
import torch.optim
from torch import nn

import fromscratch.cli.fit
import fromscratch.cli.train
import fromscratch.evaluation.loss
import fromscratch.processes.launcher
import fromscratch.runs.charts
import fromscratch.session.run  # noqa: F401
import tests.processes.faulty
import tests.processes.world_cases  # noqa: F401

torch.optim.AdamW(nn.Linear(1, 1).parameters())  # imports torch._dynamo
