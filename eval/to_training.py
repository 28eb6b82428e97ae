"""Distances of a run's samples to its training images, by which settings of sampling are chosen without test images."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ncode_gen.config import Recipe, known_kinds
from ncode_gen.data import Images, load_data
from ncode_gen.distributions import LatentModel
from ncode_gen.metrics import FeatureNetwork, GaussianStatistics, frechet_distance, load_features
from ncode_gen.runfolder.run import find_run, load_recipe, load_run
from ncode_gen.runtime.device import computes_in_bf16, resolve_device
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_text
from ncode_gen.runtime.seeding import seeded

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Opened:
    """A run, and the features of its training images.

    Attributes:
        recipe: its recipe.
        model: its model.
        network: the feature network.
        train: the training images.
        known: their features.
        real: mean and covariance of these.
        order: as many of their numbers as there are samples, at random.
        commit: commit of the program.
    """

    recipe: Recipe
    model: LatentModel
    network: FeatureNetwork
    train: Images
    known: Tensor
    real: GaussianStatistics
    order: Tensor
    commit: str

    def distance(self, features: Tensor) -> float:
        """Return the Frechet distance of features to those of all training images."""
        return float(frechet_distance(self.real, GaussianStatistics.of(features)))

    def distance_of(self, images: Tensor) -> float:
        """Return the distance of images (n, C, H, W) in [0, 1]."""
        return self.distance(self.network.of(images.split(250)))

    def title(self, script: str, more: str = "") -> list[str]:
        """Return the lines above a table: which distance, of what, made how, and that of as many training images."""
        floor = self.distance(self.known[self.order])
        return [
            f"FID[{self.network.name}, n={len(self.order)}] of `{self.recipe.name}` to its {len(self.known):,} "
            f"training images{more}, by `python eval/{script}`. As many training images have {floor:.2f}. "
            f"Commit {self.commit}.",
            "",
        ]


def parser_of(text: str | None, what: str, n: int) -> argparse.ArgumentParser:
    """Return a parser with the flags that all such scripts have.

    Args:
        text: description.
        what: what the run must have.
        n: default number of samples.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help=f"a finished run with {what}")
    parser.add_argument("--root", default="", help="folder or file of the set, if not the recipe's")
    parser.add_argument("--features", choices=known_kinds("features"), help="feature network; by default the set's")
    parser.add_argument("--n", type=int, default=n, help="samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="file of the table")
    return parser


def opened(options: argparse.Namespace, *, bf16: bool = False) -> Opened:
    """Return the run that a command line names; with `bf16` it samples so, where the device can."""
    folder, device = find_run(options.run), resolve_device(options.device)
    recipe, model = load_recipe(folder), load_run(folder, device)
    if bf16 and computes_in_bf16(device):
        model.compute_in(torch.bfloat16)
    train = load_data(recipe.data.at(options.root)).train
    network = load_features(options.features or recipe.chosen_features, None, device)
    known = network.of(train.batches(250, device=device))
    order = torch.randperm(len(train), generator=seeded(options.seed))[: options.n]
    commit = str(describe_environment(device, options.seed)["commit"])
    return Opened(recipe, model, network, train, known, GaussianStatistics.of(known), order, commit)


def write_table(lines: list[str], out: Path | None, name: str) -> None:
    """Write and print a table; into results/NAME.md, unless another file is named."""
    text = "\n".join(lines) + "\n"
    write_text(out or RESULTS / f"{name}.md", text)
    print(text)
