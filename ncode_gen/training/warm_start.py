"""Training that starts from the weights of another run."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..errors import UserError


def take_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Give a model the weights that have its names and shapes.

    Args:
        model: what takes them.
        weights: those of another model, by name.

    Returns:
        The names of the weights that the model keeps as they are.

    Raises:
        UserError: none fits.
    """
    kept, own = [], dict(model.named_parameters())
    for name, weight in own.items():
        given = weights.get(name)
        if given is None or given.shape != weight.shape:
            kept.append(name)
        else:
            weight.data.copy_(given)
    if len(kept) == len(own):
        raise UserError("no weight of the run to start from has the name and shape of one of this model")
    return kept
