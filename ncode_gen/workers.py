"""Processes that work together: who they are, what each does, and how their results meet.

One process needs none of this; `ALONE` stands for it. Several are started by torchrun or SLURM; lightning-fabric finds
them, their devices and how they talk.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import UserError

__all__ = ["ALONE", "Workers", "join_workers"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """The processes of one command.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """Return this process's share of a batch (n, ...), (n / count, ...)."""
        share = len(batch) // self.count
        return batch[self.rank * share : (self.rank + 1) * share]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes, the same in all."""
        if self.count == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def mine(self, items: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        """Yield this process's items with their numbers: one of `count` in turn."""
        return ((number, item) for number, item in enumerate(items) if number % self.count == self.rank)

    def gather(self, found: dict[int, Tensor]) -> Tensor:
        """Return what all processes found for their items, in the items' order, joined on the first axis."""
        if self.count > 1:
            parts: list[Any] = [None] * self.count
            dist.all_gather_object(parts, found)
            found = {number: value for part in parts for number, value in part.items()}
        return torch.cat([found[number] for number in sorted(found)])

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose gradients are the means over the processes."""
        if self.count == 1:
            return module
        return nn.parallel.DistributedDataParallel(module)

    def local(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients of a wrapped module stay with this process."""
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def wait(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            dist.barrier()


ALONE = Workers()


def join_workers(device: str) -> tuple[Workers, torch.device | None]:
    """Join the processes that torchrun or SLURM started.

    Args:
        device: as the user named it; "cpu" keeps several processes on the CPU where there is an accelerator.

    Returns:
        The workers, and this one's device; `ALONE` and None, if this process was started by itself.

    Raises:
        UserError: the processes cannot be joined.
    """
    # In a batch script without srun, SLURM_NTASKS speaks of tasks that nobody started; the step's number does not.
    count = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if count == 1:
        return ALONE, None
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    accelerator = device.split(":", maxsplit=1)[0]
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    if "LOCAL_WORLD_SIZE" in os.environ:
        nodes = count // int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        fabric = Fabric(accelerator=accelerator, devices=count // nodes, num_nodes=nodes, strategy="ddp")
        fabric.launch()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{count} processes could not be joined on {nodes} nodes ({reason})", code=1) from None
    return Workers(fabric.global_rank, fabric.world_size), fabric.device
