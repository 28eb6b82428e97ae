"""Activations of a field, with their slopes where a divergence needs them."""

from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["tanh", "softplus", "silu"]


def activate(name: Activation, x: Tensor) -> Tensor:
    """Return the activation a(x), elementwise."""
    if name == "tanh":
        return torch.tanh(x)
    if name == "softplus":
        return nn.functional.softplus(x)
    return nn.functional.silu(x)


def activate_with_slope(name: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a(x) and a'(x), elementwise."""
    if name == "tanh":
        value = torch.tanh(x)
        return value, 1 - value * value
    gate = torch.sigmoid(x)
    if name == "softplus":
        return nn.functional.softplus(x), gate
    return x * gate, gate * (1 + x * (1 - gate))
