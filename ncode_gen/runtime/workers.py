"""Processes that work together: who they are, what each does, and how their results meet.

One process needs none of this; `ALONE` stands for it. Several are started by torchrun or SLURM.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Workers:
    """The processes of one command.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
        sharded: whether each holds a share of what is trained, instead of all of it.
    """

    rank: int = 0
    count: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
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
        """Return a module whose gradients are the means over the processes.

        If they are sharded, its parameters are shares from here on, which become whole for the time of a call; those
        that are numbers or are not trained stay whole, and `mean_of_whole` takes the means of their gradients.
        """
        if self.count == 1:
            return module
        if self.sharded:
            kept = {value for value in module.parameters() if value.dim() == 0 or not value.requires_grad}
            device = next(module.parameters()).device
            mesh = init_device_mesh(device.type, (self.count,))
            return cast(nn.Module, fully_shard(module, mesh=mesh, ignored_params=kept))
        return nn.parallel.DistributedDataParallel(module)

    def local(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients of a wrapped module stay with this process."""
        if isinstance(module, FSDPModule):
            return _gathered_later(module)
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()

    def mean_of_whole(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the means over the processes of gradients that sharding leaves alone."""
        for parameter in parameters if self.sharded else ():
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                parameter.grad.copy_(self.sum(parameter.grad) / self.count)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients so that their norm over all processes is at most `limit`; return the norm that it was, ()."""
        if not self.sharded:
            return nn.utils.clip_grad_norm_(parameters, limit)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        shares = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        rest = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        square = self.sum(torch.stack([share.square().sum() for share in shares]).sum())
        norm = torch.stack([square, *(gradient.square().sum() for gradient in rest)]).sum().sqrt()
        torch._foreach_mul_([*shares, *rest], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


ALONE = Workers()


@contextlib.contextmanager
def _gathered_later(module: FSDPModule) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def full_tensor(value: Any) -> Any:
    """Return a tensor, or dicts and lists of such, with shares put together; all processes must ask."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: full_tensor(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [full_tensor(inner) for inner in value]
    return value


def distribute_like(value: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor shared among the processes in the way that another one of its shape is, if it is."""
    if isinstance(other, DTensor) and value.shape == other.shape:
        return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
    return value


def join_workers(device: str, *, sharded: bool = False) -> tuple[Workers, torch.device | None]:
    """Join the processes that torchrun or SLURM started.

    Args:
        device: as the user named it; "cpu" keeps several processes on the CPU where there is an accelerator.
        sharded: whether each is to hold a share of what is trained.

    Returns:
        The workers, and this one's device; `ALONE` and None, if this process was started by itself.

    Raises:
        UserError: the processes cannot be joined, or there is no other to share with.
    """
    environ = os.environ
    # In a batch script without srun, SLURM_NTASKS counts tasks that were not started; the step's number does not.
    count = int(environ.get("WORLD_SIZE") or environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if count == 1:
        if sharded:
            raise UserError(
                "--strategy fsdp shares a model among processes; start several with torchrun, or leave it out"
            )
        return ALONE, None
    try:
        if "WORLD_SIZE" not in environ:
            _tell_torch_of_slurm()
        rank, local = int(environ["RANK"]), int(environ["LOCAL_RANK"])
        gpu = device.split(":", maxsplit=1)[0] != "cpu" and torch.cuda.is_available()
        own = torch.device("cuda", local) if gpu else torch.device("cpu")
        if gpu:
            torch.cuda.set_device(own)
        dist.init_process_group("nccl" if gpu else "gloo", rank=rank, world_size=count)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{count} processes could not be joined ({reason})", code=1) from None
    return Workers(rank, count, sharded), own


def _tell_torch_of_slurm() -> None:
    """Set the variables that torch.distributed reads from those that SLURM sets for the tasks of a step."""
    environ = os.environ
    nodes = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_NODELIST"]
    first = nodes.split(",")[0]
    if "[" in first:  # node[07-09]: SLURM itself knows how to read it
        command = ["scontrol", "show", "hostnames", nodes]
        first = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()[0]
    environ.setdefault("MASTER_ADDR", first)
    environ.setdefault("MASTER_PORT", str(15000 + int(environ.get("SLURM_JOB_ID", "0")[-4:])))
    environ.setdefault("RANK", environ["SLURM_PROCID"])
    environ.setdefault("LOCAL_RANK", environ["SLURM_LOCALID"])
    environ.setdefault("WORLD_SIZE", environ["SLURM_STEP_NUM_TASKS"])
