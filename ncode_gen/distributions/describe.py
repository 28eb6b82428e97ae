"""Whether a model fits into memory, checked before any is allocated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..config import Recipe
from ..errors import UserError
from ..runtime.memory import memory_of
from .build import build_model
from .model import LatentModel

# Weights and their average, which every process holds whole; gradients and the two moments of AdamW.
WHOLE, SHARED = 2, 3
IN_PLACE = {Tensor.normal_, Tensor.copy_, Tensor.mul_, Tensor.add_}
# And the dtype of what is found, where it is not that of the numbers.
ELEMENTWISE = {
    **dict.fromkeys((Tensor.mul, Tensor.div), None),
    **dict.fromkeys((Tensor.eq, Tensor.ne, Tensor.__eq__, Tensor.__ne__), torch.bool),
}


class _Unfilled(TorchFunctionMode):
    """Leaves new weights on the meta device as they are, instead of drawing and scaling them.

    There is nothing to fill; but torch imports its compiler, which takes seconds, to find the shapes of such operations
    there.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.randn and "device" not in options:  # else it is another device's
            return torch.empty(*args, **{key: value for key, value in options.items() if key != "generator"})
        first = args[0] if args else None
        if func is torch.cat and len(args) == 1 and not options and all(part.is_meta for part in args[0]):
            return torch.empty(sum(len(part) for part in args[0]), *args[0][0].shape[1:], dtype=args[0][0].dtype)
        if isinstance(first, Tensor) and first.is_meta:
            if func in IN_PLACE:
                return first
            if func is torch.randn_like:
                return torch.empty(first.shape, dtype=first.dtype)
            if func in ELEMENTWISE:
                # torch.broadcast_shapes would import a part of the compiler.
                shape = numpy.broadcast_shapes(first.shape, args[1].shape if isinstance(args[1], Tensor) else ())
                return torch.empty(shape, dtype=ELEMENTWISE[func] or torch.result_type(first, args[1]))
        return func(*args, **options)


def describe(recipe: Recipe, shape: tuple[int, int, int]) -> LatentModel:
    """Return a recipe's model on the meta device, where nothing is allocated.

    Args:
        recipe: the model.
        shape: (C, H, W) of the images.

    Raises:
        UserError: it has more weights than can be counted.
    """
    try:
        with torch.device("meta"), _Unfilled():
            return build_model(recipe, shape)
    except (RuntimeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise UserError(f"the model of {recipe.name} is too large for any machine; {REMEDY}") from None


REMEDY = "lower encoder.width, decoder.width, flow.hidden, flow.gamma or observation.width"


def check_fits(recipe: Recipe, shape: tuple[int, int, int], device: torch.device, shares: int = 1) -> None:
    """Raise a `UserError`, if the weights of a recipe and what training keeps for each are more than memory.

    Args:
        recipe: the model.
        shape: (C, H, W) of the images.
        device: where it will be trained.
        shares: how many processes share what is trained.
    """
    memory = memory_of(device)
    weights = sum(value.numel() * value.element_size() for value in describe(recipe, shape).state_dict().values())
    needed = (WHOLE + SHARED / shares) * weights
    if memory is not None and needed > memory:
        raise UserError(
            f"training {recipe.name} takes more than {needed / 2**30:.1f} GiB for its weights alone, and "
            f"there are {memory / 2**30:.1f} GiB; {REMEDY}"
        )
