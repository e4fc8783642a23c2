"""Data parallel training under ``torchrun``: the rank of this process, and gradients averaged over processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Team:
    """This process and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0


def join_team(device: torch.device) -> Team:
    """The team that ``torchrun`` has set up; one process alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Team()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Team(dist.get_rank(), size)


def average_gradients(parameters: Sequence[Tensor], team: Team) -> None:
    """Replace every gradient by its mean over the team, in one message; a missing one counts as zero."""
    if team.size == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= team.size
    for p, mean in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = mean.view_as(p)
