"""What a code should control of a flow of pixels: `python eval/pixel_flow.py cifar10 --root FILE.npz --runs RUNS`.

Declared before it was run. On each set the same field, the same number of images seen and the same number of weights as
film-map has (within 5 %: the encoder's last channels and the width of gamma, or the width of the field where there is
no gamma, are chosen so), several seeds. Rows:

    static       no code: one flow for all, as torchcfm's I-CFM
    time         the code is added to the features of the time, as Latent-CFM
    rfm          the same, with the encoder of noise and image and the prior N(0, I) of V-RFM
    input        the code, a map, is painted beside the image: biases of the first layer over space
    film         FiLM by the code, a vector
    film-map     FiLM over space by the code, a map
    low-rank     updates of rank 4 of a kernel of each block, by the code, a vector
    both         film-map and low-rank, by a map
    closed       film-map, by the code and the current state
    refined      today's two stages: decoder means and a refiner, half of the images each

Pair of the headline: film-map against input, FID at 4 evaluations, on cifar10 and fashion-mnist, every seed. The prior
of codes has a guide in all rows that have codes; how far it guides, 1, 1.5 or 2, is chosen for each cell by the FID of
samples at 4 evaluations to training images. Columns are scored on the test images; nothing is chosen by them. A cell
that is there is not run again; a run that was cut off continues. Writes eval/results/pixel-flow-SET.{json,md}.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from cells import told
from pixel_flow_parts import PairSection, RectifiedSection, VectorSection
from torch import Tensor

from ncode_gen.config import Recipe
from ncode_gen.data import Splits, load_data
from ncode_gen.distributions import LatentModel, PixelFlow, build_model, describe
from ncode_gen.distributions.priors import DeepFlow
from ncode_gen.metrics import (
    FeatureNetwork,
    GaussianStatistics,
    compare_features,
    frechet_distance,
    linear_probe,
    load_features,
    score_flow_reconstruction,
)
from ncode_gen.runfolder.run import load_run
from ncode_gen.runtime.device import computes_in_bf16
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_json, write_text
from ncode_gen.runtime.seeding import seeded
from ncode_gen.training import train
from ncode_gen.training.validation import validate_matching

RESULTS = Path(__file__).parent / "results"
EVALUATIONS, FROM_CODES, SCALES, KNOWN = (2, 4, 8, 32), (4, 32), (1.0, 1.5, 2.0), 10_000


@dataclass(frozen=True)
class Budget:
    """What all rows of a set have in common.

    Attributes:
        images: images seen.
        codes: updates of the prior of codes, of 128 each.
        samples: images of a Frechet distance.
        seeds: number of seeds.
        dim: size of a code.
        side: side of a code that is a map.
        width: channels of the field.
        features: feature network.
    """

    images: int
    codes: int
    samples: int
    seeds: int
    dim: int
    side: int
    width: int
    features: str


SETS = {
    "cifar10": Budget(95_000, 1500, 2000, 2, 256, 8, 64, "cifar10-classifier"),
    "fashion-mnist": Budget(57_000, 1000, 2000, 3, 98, 7, 48, "fashion-classifier"),
    "mnist": Budget(57_000, 1000, 2000, 3, 49, 7, 48, "mnist-classifier"),
}
WITHIN = 0.05
MAP, VECTOR = "map", "vector"
# Control and form of the code.
CONTROLS: dict[str, tuple[tuple[str, ...], str]] = {
    "static": ((), VECTOR),
    "time": (("time",), VECTOR),
    "rfm": (("time",), VECTOR),
    "input": (("input",), MAP),
    "film": (("film",), VECTOR),
    "film-map": (("film-map",), MAP),
    "low-rank": (("low-rank",), VECTOR),
    "both": (("film-map", "low-rank"), MAP),
    "closed": (("film-map",), MAP),
}
ROWS = (*CONTROLS, "refined")


def recipe_of(
    name: str, row: str, seed: int, root: str, hidden: int = 128, width: int = 0, channels: int = 8
) -> Recipe:
    """Return the recipe of a row.

    Args:
        name: image set.
        row: row of the table.
        seed: its seed.
        root: folder, or file, of the set.
        hidden: channels of gamma.
        width: channels of the field; those of the budget if 0.
        channels: of the last maps of an encoder whose code is a vector.
    """
    budget = SETS[name]
    data: dict[str, Any] = {"name": name, "root": root} if name != "cifar10" else {"name": "arrays", "root": root}
    data |= {"flip": name != "mnist"}
    shared: dict[str, Any] = {
        "name": f"{name}-{row}-{seed}",
        "seed": seed,
        "data": data,
        "flow": {"loop": "none"},
        "training": {"epochs": 1, "lr": 1e-3, "batch": 128, "grad_clip": 1.0, "precision": "bf16"},
        "features": {"kind": budget.features},
    }
    if row == "refined":
        return Recipe.from_dict(
            {
                **shared,
                "encoder": {"kind": VectorSection.kind, "width": 48, "features": channels * budget.side**2},
                "latent": {"dim": 128},
                "decoder": {"kind": "residual", "width": 48},
                "flow": {"loop": "open", "hidden": 128, "control": "film", "gamma": 0, "steps": 4},
                "observation": {"kind": "refined", "width": width or budget.width},
                "objective": {"kind": "autoencoder", "latent_penalty": 0.02},
                "prior": {"kind": "flow", "components": 0},
            }
        )
    control, form = CONTROLS[row]
    loop = "static" if row == "static" else "closed" if row == "closed" else "open"
    observation: dict[str, Any] = {"kind": "flow", "loop": loop, "width": width or budget.width}
    if control:
        observation |= {"control": list(control), "hidden": hidden, **({"rank": 4} if "low-rank" in control else {})}
    places = budget.side**2
    encoder: dict[str, Any] = {"kind": "map", "width": 48, "features": 64 * places}
    if form == VECTOR:
        encoder = {
            "kind": PairSection.kind if row == "rfm" else VectorSection.kind,
            "width": 48,
            "features": channels * places,
        }
    objective = RectifiedSection.kind if row == "rfm" else "matching"
    return Recipe.from_dict(
        {
            **shared,
            "encoder": encoder,
            "latent": {"dim": budget.dim, **({"side": budget.side} if form == MAP else {})},
            "observation": observation,
            "objective": {"kind": objective, "beta": 0.12},
            "prior": {"kind": "normal"}
            if row in ("static", "rfm")
            else {
                "kind": "deep-flow",
                "iterations": budget.codes,
                "batch": 128,
                "width": budget.width * 4 // 3 if form == MAP else 4 * budget.width,
                "guide": 32,
            },
        }
    )


def weights_of(recipe: Recipe, shape: tuple[int, int, int]) -> int:
    """Return the number of weights that make an image of a code, and the code of an image; of static, of the field."""
    model = describe(recipe, shape)
    parts = (
        [model.observation]
        if recipe.observation.values().get("loop") == "static"
        else [model.observation, model.encoder, model.posterior]
    )
    return sum(value.numel() for part in parts for value in part.parameters())


def equalised(name: str, row: str, seed: int, root: str, shape: tuple[int, int, int]) -> Recipe:
    """Return a row's recipe with about as many weights as film-map has, and else as near to it as can be."""
    wanted = weights_of(recipe_of(name, "film-map", seed, root), shape)
    usual = {"width": SETS[name].width, "channels": 8, "hidden": 128}
    free = {"static": ("width",), "refined": ("width", "channels")}.get(row, ("channels", "hidden"))
    ranges = {"width": range(32, 129, 4), "channels": range(2, 17), "hidden": range(16, 257, 16)}
    values = [ranges[key] for key in free]

    def excess(chosen: tuple[int, ...]) -> tuple[bool, float, float]:
        keys: Any = usual | dict(zip(free, chosen, strict=True))
        off = abs(weights_of(recipe_of(name, row, seed, root, **keys), shape) / wanted - 1)
        return off > WITHIN, abs(math.log(keys["width"] * keys["hidden"] / usual["width"] / usual["hidden"])), off

    best = min(itertools.product(*values), key=excess)
    return recipe_of(name, row, seed, root, **dict(zip(free, best, strict=True)))


def with_budget(recipe: Recipe, images: int, available: int) -> Recipe:
    """Return a recipe with so many images seen, of those that there are: whole passes, and a part of them."""
    limit, epochs = available, max(1, round(images / available))
    if images < available:
        limit, epochs = images, 1
    data: Any = {"limit": limit if limit < available else 0}
    training: Any = {"epochs": epochs}
    changed: Any = {"data": dataclasses.replace(recipe.data, **data)}
    if recipe.observation.pixelwise:
        half: Any = {"epochs": max(1, epochs // 2)}
        training = {"epochs": max(1, epochs - epochs // 2)}
        changed["observation"] = dataclasses.replace(recipe.observation, **half)
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **training), **changed)


def scored(model: LatentModel, splits: Splits, network: FeatureNetwork, budget: Budget, seed: int) -> dict[str, float]:
    """Return the scores of a trained row; samples are drawn in bf16 where the device has it."""
    if computes_in_bf16(model.device):
        model.compute_in(torch.bfloat16)
    test = network.of(splits.test.batches(250))
    found: dict[str, float] = {}
    codes = model.encode(splits.train.first(budget.samples))

    def samples(evaluations: int, scale: float | None) -> Tensor:
        return model.sample(budget.samples, seeded(seed), evaluations=evaluations, autoguidance=scale)

    scale: float | None = None
    if isinstance(model.prior, DeepFlow):
        known = GaussianStatistics.of(network.of(splits.train.first(KNOWN).split(250)))

        def distance(scale: float) -> float:
            return float(frechet_distance(known, GaussianStatistics.of(network.of(samples(4, scale).split(250)))))

        scale = min(SCALES, key=distance)
        found["autoguidance"] = scale
    for count in EVALUATIONS:
        made = {}
        if isinstance(model.observation, PixelFlow) or model.observation.stochastic:
            made["prior"] = samples(count, scale)
        if made and count in FROM_CODES:
            made["codes"] = model.sample_images(codes, seeded(seed), evaluations=count)
        for source, images in made.items():
            scores = compare_features(test, network.of(images.split(250)), seed)
            found |= {f"{key}_{source}_{count}": scores[key].value for key in ("fid", "kid", "coverage")}
    model.compute_in(None)
    if splits.train.labels is not None:
        found["probe"] = linear_probe(model, splits.train, splits.test, seed).value
    if isinstance(model.observation, PixelFlow):
        found |= validate_matching(model, splits.test, model.device)
        reconstruction = score_flow_reconstruction(model, splits.test.head(250), seed=seed)
        found |= {key: score.value for key, score in reconstruction.items()}
    return found


def run(name: str, row: str, seed: int, root: str, runs: Path) -> dict[str, Any]:
    """Train and score a cell."""
    budget, started = SETS[name], time.perf_counter()
    data = recipe_of(name, row, seed, root).data
    splits = load_data(data)
    recipe = with_budget(equalised(name, row, seed, root, splits.train.shape), budget.images, len(splits.train))
    learnt = load_data(recipe.data)
    folder = runs / recipe.name
    device = torch.device("cpu")
    train(recipe, learnt, folder, device=device, resume=(folder / "state").exists(), quiet=True)
    seconds = time.perf_counter() - started
    model = load_run(folder, device)
    network = load_features(recipe.chosen_features, None, device)
    environment = describe_environment(device, seed)
    return {
        "weights": weights_of(recipe, splits.train.shape),
        "field": sum(value.numel() for value in build_model(recipe, splits.train.shape).observation.parameters()),
        "seconds": round(seconds),
        "commit": environment["commit"],
        "device": environment["device"],
        **scored(model, splits, network, budget, seed),
    }


def table(name: str, cells: dict[str, dict[str, Any]]) -> str:
    """Return the cells as Markdown, means over seeds with the range of seeds."""
    budget = SETS[name]
    lines = [
        f"# What a code should control: {name}",
        "",
        f"{budget.images:,} images seen, {budget.samples} samples against all test images, FID[{budget.features}]; "
        "means of the seeds, and each. Made by `python eval/pixel_flow.py`, whose text declares rows and pair.",
        "",
    ]
    keys = {
        **{f"fid_prior_{count}": f"FID, {count}" for count in EVALUATIONS},
        **{f"fid_codes_{count}": f"training codes, {count}" for count in FROM_CODES},
        "autoguidance": "autoguidance",
        "coverage_prior_8": "coverage, 8",
        "validation_flow_matching": "matching",
        "validation_kl_nats": "KL, nats",
        "validation_bits_per_dim": "bits/dim, bound",
        "mse_fresh": "MSE, fresh",
        "psnr_inverted": "PSNR, inverted",
        "probe": "probe",
        "weights": "weights",
        "seconds": "s",
    }
    lines += [f"| row | {' | '.join(keys.values())} |", "|---|" + "---:|" * len(keys)]
    for row in ROWS:
        own = [cell for key, cell in cells.items() if key.rsplit("/", 1)[0] == row]
        if not own:
            continue
        shown = []
        for key in keys:
            values = [cell[key] for cell in own if key in cell]
            each = f" ({', '.join(f'{value:.4g}' for value in values)})" if len(values) > 1 and "fid" in key else ""
            shown.append(f"{mean(values):.4g}{each}" if values else "-")
        lines.append(f"| {row} | {' | '.join(shown)} |")
    missing = [f"{row}/{seed}" for row in ROWS for seed in range(budget.seeds) if f"{row}/{seed}" not in cells]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    commits = sorted({cell["commit"] for cell in cells.values()})
    if commits:
        lines += ["", f"Commits: {', '.join(commits)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--root", default="data", help="folder of the set; of cifar10 an .npz file of arrays")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs go")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds; by default those of the declaration")
    options = parser.parse_args()
    path = RESULTS / f"pixel-flow-{options.set}.json"
    cells: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    seeds = options.seeds if options.seeds is not None else range(SETS[options.set].seeds)
    wanted = {f"{row}/{seed}": (row, seed) for seed in seeds for row in options.rows}
    for row, seed in told({key: pair for key, pair in wanted.items() if key not in cells}):
        cells[f"{row}/{seed}"] = run(options.set, row, seed, options.root, options.runs)
        write_json(path, cells)
        write_text(path.with_suffix(".md"), table(options.set, cells))
    print(table(options.set, cells))


if __name__ == "__main__":
    main()
