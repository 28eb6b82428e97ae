"""Imports of libraries at the time of their first use."""

import importlib
from types import ModuleType

import torch
from torch.utils._python_dispatch import _disable_current_modes


def import_plainly(name: str) -> ModuleType:
    """Import a module as at the start of a program, whatever mode of torch its first user is in.

    What a library computes while it is imported stays for the whole process: its constants must not be made on the meta
    device, as fake tensors, or without gradients, because that is how a model is being looked at.

    Args:
        name: full name of the module.

    Raises:
        ImportError: there is no such module, or it does not load.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"), _disable_current_modes():
        return importlib.import_module(name)
