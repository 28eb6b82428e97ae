"""Guidance: a flow whose velocity under a condition is moved away from that under another."""

import torch
from torch import Tensor

from .controllers import Controller
from .field import Field, VectorField
from .system import ControlledODE


class GuidedController(Controller):
    """Two controls of one field, or of two: the velocity is other + scale (own - other).

    Sources: Ho and Salimans, "Classifier-free diffusion guidance", 2022, equation 6; Karras et al., "Guiding a
    diffusion model with a bad version of itself", NeurIPS 2024 (autoguidance).

    Args:
        own: what decides the control under the condition.
        scale: 1 for the condition alone; above 1 for more of what it adds.
        hidden: how many numbers at the end of a condition, its label, the other control does not see.
        other: field and controller that the velocity is moved away from; the same ones if None.
    """

    def __init__(
        self, own: Controller, scale: float, hidden: int = 0, other: tuple[Field, Controller] | None = None
    ) -> None:
        super().__init__()
        self.own, self.scale, self.hidden, self.other = own, scale, hidden, other
        self.closed_loop = own.closed_loop

    def bind(self, field: Field, condition: Tensor) -> VectorField:
        """Return the guided vector field."""
        blind = condition
        if self.hidden:
            blind = torch.cat([condition[:, : -self.hidden], torch.zeros_like(condition[:, -self.hidden :])], 1)
        other_field, other = self.other or (field, self.own)
        return _Guided(self.own.bind(field, condition), other.bind(other_field, blind), self.scale)


class _Guided(VectorField):
    def __init__(self, own: VectorField, other: VectorField, scale: float) -> None:
        super().__init__(own.field, own.control)
        self.own, self.other, self.scale = own, other, scale

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return torch.lerp(self.other.velocity(t, x), self.own.velocity(t, x), self.scale)

    def select(self, rows: Tensor) -> VectorField:
        return _Guided(self.own.select(rows), self.other.select(rows), self.scale)

    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.own.tensors(), *self.other.tensors())


def guided(flow: ControlledODE, scale: float, hidden: int = 0, weaker: ControlledODE | None = None) -> ControlledODE:
    """Return a flow with guidance, which shares its weights.

    Args:
        flow: the flow.
        scale: see `GuidedController`.
        hidden: size of the label at the end of a condition, which the other control does not see.
        weaker: the flow that the velocity is moved away from, such as the same one after less training.

    >>> from ncode_gen.control import ConstantField, OpenController
    >>> flow = ControlledODE(ConstantField(1), OpenController(lambda c: c[:, :1] + c[:, 1:]))
    >>> condition = torch.tensor([[1.0, 2.0]])
    >>> strong = guided(flow, 2.0, hidden=1)
    >>> flow(torch.zeros(1, 1), condition).state, strong(torch.zeros(1, 1), condition).state.round()
    (tensor([[3.]]), tensor([[5.]]))
    """
    other = None if weaker is None else (weaker.field, weaker.controller)
    controller = GuidedController(flow.controller, scale, hidden, other)
    return ControlledODE(flow.field, controller, augment=flow.augment, options=flow.options)
