"""What a forkserver imports once for all the runs that it starts."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import torch

import diptych.training.loop  # noqa: F401

torch.set_num_threads(1)
