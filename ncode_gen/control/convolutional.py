"""Convolutional fields on feature maps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..solvers import is_batch_invariant
from .activations import Activation, activate
from .field import clock
from .layered import LayeredBound, LayeredField, ShallowField
from .parameterisation import Affine, Control, LayerControl, Products


def _per_map(values: Tensor, maps: Tensor) -> Tensor:
    """Return numbers of channels, (o,) or (n, o), as they meet maps (n * K, o, H, W)."""
    if values.dim() == 2:
        values = values.repeat_interleave(maps.shape[0] // values.shape[0], 0)
    return values[..., None, None]


def _convolve(layer: Affine, kernel: int, t: Tensor, maps: Tensor) -> Tensor:
    """Apply a layer whose weights all samples share to maps (n * K, C, H, W)."""
    weight = layer.weight.t().unflatten(1, (maps.shape[1], kernel, kernel))
    bias = layer.bias if layer.time is None else layer.bias + clock(t) * layer.time
    y = nn.functional.conv2d(maps.to(weight.dtype), weight, padding=kernel // 2)
    if layer.scale is not None:
        y = _per_map(layer.scale, y) * y
    return y + _per_map(bias, y)


class _Shared(LayeredBound):
    """Kernels that all samples share, feedback included, each sample with its own FiLM."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        if is_batch_invariant():  # the library's convolution may round another batch otherwise
            return super().velocity(t, x)
        field = self.field
        units = maps = x.flatten(0, 1)
        if len(self.layers) == 1 and self.gains:
            units = (1 + torch.tanh(_convolve(self.gains[0], 1, t, maps))) * units
        for i, layer in enumerate(self.layers[:-1]):
            units = activate(field.activation, _convolve(layer, field.kernel, t, units))
            if self.gains:
                units = (1 + torch.tanh(_convolve(self.gains[i], 1, t, maps))) * units
        return _convolve(self.layers[-1], field.kernel, t, units).view_as(x)


class _ShallowShared(_Shared, ShallowField):
    """The same with at most one hidden layer, whose divergence is in closed form."""


class ConvField(LayeredField):
    """A convolutional network on feature maps (C, H, W) of any height and width, padded with zeros.

    Its weights are few, whatever the size of the map: with FiLM a control is two numbers a channel, and the
    kernels, which all samples share, go through the library's convolution. With one hidden layer the divergence is in
    closed form: the effect of a hidden unit on itself is the correlation of its two kernels, cut at the border.

    Args:
        channels: number of channels C.
        hidden: channels of the hidden layers; () for an affine convolution.
        kernel: side of every kernel, odd; gains see one pixel.
        control: what of the weights is control, see `ncode_gen.control.parameterisation`.
        rank: rank of the low-rank updates.
        time: whether hidden layers and gains see the time.
        activation: "tanh", "softplus" or "silu".
        feedback: whether the gain of every hidden unit at every pixel follows the state there.
        feedback_control: what of the feedback is control, see `LayeredField`.
        products: precision of the matrix products; state and time keep theirs.

    Raises:
        ValueError: a size below one, an even kernel, or an unknown control parameterisation.

    >>> field = ConvField(3, (8,), control="film", time=False)
    >>> field.control_size  # 2 x 8 + 2 x 3
    22
    >>> field(0.0, torch.ones(5, 3, 6, 6), field.initial_control()).shape
    torch.Size([5, 3, 6, 6])
    """

    axes = 3

    def __init__(
        self,
        channels: int,
        hidden: Sequence[int] = (16,),
        *,
        kernel: int = 3,
        control: Control = "all",
        rank: int = 4,
        time: bool = True,
        activation: Activation = "tanh",
        feedback: bool = False,
        feedback_control: LayerControl | None = None,
        products: Products = "float32",
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"the side of a kernel must be odd, got {kernel}")
        super().__init__(
            channels, hidden, kernel=kernel, control=control, rank=rank, time=time, activation=activation,
            feedback=feedback, feedback_control=feedback_control, products=products,
        )  # fmt: skip
        self.summary_size = 2 * channels

    def bound(self, control: Tensor, layers: list[Affine], gains: list[Affine]) -> LayeredBound:
        """Return the vector field of bound layers and gains."""
        if self.control != "film" or any(gain.weight.dim() > 2 or gain.down is not None for gain in gains):
            return super().bound(control, layers, gains)
        return (_ShallowShared if len(self.layers) <= 2 else _Shared)(self, control, layers, gains)

    def points(self, x: Tensor) -> Tensor:
        """Return maps (n, K, C, H, W) as pixels (n, K H W, C)."""
        return x.permute(0, 1, 3, 4, 2).flatten(1, 3)

    def states(self, points: Tensor, x: Tensor) -> Tensor:
        """Return pixels (n, K H W, C) as maps (n, K, C, H, W), or numbers (n, K H W) summed over a map, (n, K)."""
        _, maps, _, height, width = x.shape
        if points.dim() == 2:
            return points.view(-1, maps, height * width).sum(-1)
        return points.view(-1, maps, height, width, points.shape[-1]).permute(0, 1, 4, 2, 3)

    def patches(self, points: Tensor, x: Tensor) -> Tensor:
        """Return the patch around each pixel, (n, K H W, w * kernel^2), features first."""
        if self.kernel == 1:
            return points
        height, width = x.shape[-2:]
        images = points.reshape(-1, height, width, points.shape[-1]).movedim(-1, 1)
        columns = nn.functional.unfold(images, self.kernel, padding=self.kernel // 2)
        return columns.transpose(1, 2).reshape(len(x), -1, columns.shape[1])

    def effects(self, inner: Tensor | None, outer: Tensor, x: Tensor) -> Tensor:
        """Return the effect of every unit at every pixel on itself, shape (..., M, units)."""
        k, maps = self.kernel, x.shape[1]
        kernels = outer.unflatten(-2, (-1, k, k))  # (..., units, k, k, d)
        if inner is None or inner.shape[-2] == self.dim != self.dim * k * k:
            # The unit sees its own pixel alone, so only the centre of the outer kernel leads back to it.
            centre = kernels[..., k // 2, k // 2, :]
            loops: Tensor = centre.diagonal(dim1=-2, dim2=-1) if inner is None else (inner * centre.mT).sum(-2)
            return loops.unsqueeze(-2)
        seen = inner.unflatten(-2, (self.dim, k, k))  # (..., d, k, k, units)
        loops = torch.einsum("...dijh,...hijd->...hij", seen, kernels.flip(-2, -3)).flatten(-2)
        inside = nn.functional.unfold(x.new_ones(1, 1, *x.shape[-2:]), k, padding=k // 2)[0]
        # The map of effects is the same for each of the K maps of a sample.
        effects: Tensor = (loops @ inside).transpose(-1, -2)
        return effects.repeat(*[1] * (loops.dim() - 2), maps, 1)
