"""The device of a command, and what it can compute in."""

import contextlib
import sys
from collections.abc import Iterator

import torch

from ..errors import UserError


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        for kind, there in (("cuda", torch.cuda.is_available), ("mps", torch.backends.mps.is_available)):
            try:
                if there():
                    torch.zeros(1, device=kind)
                    return torch.device(kind)
            except (RuntimeError, AssertionError) as error:  # a driver that is too old, or a device of somebody else's
                reason = str(error).partition("\n")[0]
                print(f"note: {kind} cannot be used here ({reason}); the CPU is", file=sys.stderr)
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); use auto or cpu") from None
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself; a CPU that imitates it is slower than in float32."""
    if device.type != "cpu":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def use_full_precision() -> None:
    """Let CUDA compute in float32 where it may round to TF32 (10 bits) by default: for scores, not for training."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def preserved_settings(device: torch.device) -> Iterator[None]:
    """Let CUDA multiply matrices in TF32 inside, as training may; the setting before holds again afterwards."""
    before = torch.get_float32_matmul_precision()
    try:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        torch.set_float32_matmul_precision(before)
