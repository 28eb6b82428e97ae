"""Labels that condition a model: their names, checked against those of the images."""

import dataclasses
from typing import Any

from ..config import Recipe
from ..data import Splits
from ..errors import UserError

OF_THE_IMAGES = "auto"


def with_classes(recipe: Recipe, splits: Splits) -> Recipe:
    """Return a recipe in which the one class "auto" has become those of the images.

    Args:
        recipe: the recipe.
        splits: its images.

    Raises:
        UserError: the images have no labels, or other ones than the recipe names.
    """
    wanted = recipe.data.classes
    if not wanted:
        return recipe
    if splits.train.labels is None:
        raise UserError(
            "data.classes needs images with labels, and these have none: name a set that has them, give y_train beside "
            "x_train, or put the pictures of each class into a folder of their own"
        )
    if wanted == (OF_THE_IMAGES,):
        changes: Any = {"classes": splits.classes}
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **changes))
    if wanted != splits.classes:
        raise UserError(
            f"data.classes must be those of the images in their order, {', '.join(splits.classes)}, got "
            f'{", ".join(wanted)}; use data.classes = ["auto"]'
        )
    return recipe
