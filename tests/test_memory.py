import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ncode_gen.config import Recipe
from ncode_gen.distributions import build_model
from ncode_gen.distributions.describe import describe

MODELS = Path(__file__).parent.parent / "models"
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28)}


@pytest.mark.parametrize(
    "path", [path for name in SHAPES for path in sorted((MODELS / name).glob("*.toml"))], ids=lambda path: path.stem
)
def test_a_described_model_has_the_shapes_of_the_built_one(path: Any) -> None:
    recipe, shape = Recipe.load(path), SHAPES[path.parent.name]

    def kinds(model):
        values = {**model.state_dict(), **dict(model.named_buffers())}
        return {key: (value.shape, value.dtype) for key, value in values.items()}

    described = describe(recipe, shape)
    assert all(value.is_meta for value in described.parameters())
    assert kinds(described) == kinds(build_model(recipe, shape))


def test_no_compiler_is_imported_to_describe_a_model() -> None:
    """It takes seconds, in every command that loads a model."""
    code = (
        "import sys; from ncode_gen import Recipe; from ncode_gen.distributions.describe import describe\n"
        "for path in sys.argv[1:]: describe(Recipe.load(path), (1, 8, 8))\n"
        "assert not {'torch._dynamo', 'torch.fx.experimental.symbolic_shapes', 'sympy'} & set(sys.modules)"
    )
    paths = [str(path) for path in sorted((MODELS / "digits").glob("*.toml"))]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
