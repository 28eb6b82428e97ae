"""Generative models side by side on one image set, in one harness: `python eval/generation.py mnist`.

Every model is a recipe in models/DATA/, trained once a seed; then each prior is fitted to its latents without new
training and scored: Frechet and kernel distance, precision, recall, density and coverage of 10,000 samples against the
test images, and, where the posterior is a distribution, ELBO and importance-weighted likelihood with a refined solver.
The autoencoders share encoder, decoder, latent size and epochs; so do the models scored by likelihood, but for the
flagship (its row says what it has). Reference rows: training against test images, reconstructions, a single Gaussian.

`--dim` takes another latent size for all, `--epochs` another length of training, `--refiner-epochs` one of that of
refiners, `--limit` fewer training images; each makes cells of its own. `--priors` leaves the other priors out. For a
folder of pictures, in colour, `--root` names it, and `--features efficientnet-lite0` needs no download. A finished cell
is a file in eval/results/generation/DATA/ and is not run again. `--models` and `--seeds` choose cells, so that several
processes can share the work; `--peers PYTHON` names a Python that has pythae (see pythae_peer.py) and adds that
package's own models; `--table` runs nothing. Writes
eval/results/generation-DATA.md and contact sheets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import told
from generation_table import contact_sheet, table
from torch import Tensor

from ncode_gen.config import Recipe, known_kinds
from ncode_gen.config.networks import RefinedSection
from ncode_gen.data.images import TensorImages
from ncode_gen.data.sets import Splits, load_data
from ncode_gen.distributions import LatentModel, Refined, Refiner
from ncode_gen.distributions.priors import FlowPrior, GaussianMixture, Prior
from ncode_gen.metrics import (
    FeatureNetwork,
    GaussianStatistics,
    Score,
    compare_features,
    distance_device,
    frechet_distance,
    frechet_score,
    interpolation_score,
    linear_probe,
    load_features,
    sample_features,
    score_likelihood,
    score_reconstruction,
)
from ncode_gen.runfolder.run import load_recipe, load_run
from ncode_gen.runtime.device import resolve_device, use_full_precision
from ncode_gen.runtime.environment import describe_environment
from ncode_gen.runtime.files import write_json, write_text
from ncode_gen.runtime.seeding import seeded
from ncode_gen.solvers import SolveOptions
from ncode_gen.training.fit import fit_prior

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "eval" / "results"
AUTOENCODERS = ("ae", "rae-l2", "wae-mmd", "node-autoencoder", "anode", "ncode-autoencoder", "ncode-autoencoder-closed")
REFINED = dict.fromkeys(("ncode-refined", "ncode-refined-long", "ncode-refined-static"), "ncode-autoencoder")
VARIATIONAL = ("vae", "beta-vae", "node", "ffjord", "iaf", "ncode-open", "ncode-closed", "ncode-closed-film")
FLAGSHIPS = ("vae-flow", "ncode-open-flow")
PRIORS = ("own", "gaussian", "mixture10", "mixture", "flow")
PEERS = ["RAE_L2", "VAE", "WAE_MMD"]
SAMPLES = 10000
COARSE_STEPS = (1, 2, 4, 8)


def new_prior(name: str, dim: int, own: Prior) -> Prior:
    """Return an unfitted prior by name: "own", "gaussian", "mixture10", "mixture" or "flow"."""
    if name == "own":
        return own
    if name == "flow":
        return FlowPrior(dim)
    return GaussianMixture(dim, {"gaussian": 1, "mixture10": 10, "mixture": 0}[name])


def priors_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the priors that a model is scored with."""
    if recipe.prior.joint:
        return ("own",)
    return PRIORS if recipe.prior.kind == "normal" else PRIORS[1:]


def plain(scores: dict[str, Score]) -> dict[str, Any]:
    """Return scores as they are written."""
    return {key: dataclasses.asdict(score) for key, score in scores.items()}


def begin_with(base: Path, run: Path, recipe: Recipe) -> bool:
    """Let a refined model begin with the finished run of what it refines, as if it had trained that itself.

    Args:
        base: that run.
        run: run folder of the refined model; made, so that `train --resume` goes on there.
        recipe: the refined model.

    Returns:
        Whether it could: the base is finished, and the recipes differ in refiner and prior alone.
    """
    if not (base / "weights.safetensors").exists():
        return False
    held = load_recipe(base)
    images = recipe.data.at(held.data.place)
    same = dataclasses.replace(recipe, name=held.name, prior=held.prior, observation=held.observation, data=images)
    if same != held:
        return False
    partial = run.with_name(f".{run.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns("weights.safetensors", "evaluation.json", "gallery"))
    write_text(partial / "recipe.toml", recipe.to_toml())
    partial.rename(run)
    return True


class Study:
    """The cells of one image set."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.data: str = options.data
        self.root: str = options.root
        self.device = resolve_device(options.device)
        use_full_precision()
        self.particles: int = options.particles
        self.dim: int = options.dim
        self.epochs: int = options.epochs
        self.limit: int = options.limit
        self.refiner_epochs: int = options.refiner_epochs
        self.priors: list[str] = options.priors
        changed = {"d": self.dim, "e": self.epochs, "n": self.limit}
        self.size = "".join(f"-{key}{value}" for key, value in changed.items() if value)
        self.folder: Path = RESULTS / "generation" / self.data
        recipe = Recipe.load(ROOT / "models" / self.data / "vae.toml")
        self.splits: Splits = load_data(dataclasses.replace(recipe.data.at(self.root), limit=self.limit))
        self.network: FeatureNetwork = load_features(options.features or recipe.chosen_features, None, self.device)
        self.scorer = distance_device(self.device)
        self.real = self.network.of(self.splits.test.batches(250)).to(self.scorer)

    def compared(self, batches: Iterable[Tensor], seed: int = 0) -> dict[str, Score]:
        """Return all distances of images, in batches (m, C, H, W) in [0, 1], to the test images."""
        return compare_features(self.real, self.network.of(batches).to(self.scorer), seed)

    def drawn(self, model: LatentModel, seed: int, steps: int | None = None, *, refine: bool = True) -> Tensor:
        """Return the features (n, f) of a model's samples."""
        adjust = None if steps is None else partial(SolveOptions.but, steps=steps)
        fake = sample_features(model, self.network, SAMPLES, seed=seed, quiet=True, adjust=adjust, refine=refine)
        return fake.to(self.scorer)

    def distance(self, fake: Tensor) -> float:
        """Return the Frechet distance of features to those of the test images."""
        return float(frechet_distance(GaussianStatistics.of(self.real), GaussianStatistics.of(fake)))

    def cell(self, name: str) -> Path:
        """Return the file of a cell."""
        return self.folder / f"{name}.json"

    def write(self, name: str, **found: Any) -> None:
        """Write a cell."""
        self.folder.mkdir(parents=True, exist_ok=True)
        common: dict[str, Any] = {"features": self.network.name, "samples": SAMPLES, "test_images": len(self.real)}
        environment = describe_environment(self.device, 0)
        common |= {"training_images": len(self.splits.train), "commit": environment["commit"]}
        common["device"] = environment["device"]
        write_json(self.cell(name), common | {"torch": torch.__version__, "threads": torch.get_num_threads()} | found)
        print("finished", name, flush=True)

    def size_of(self, recipe: Recipe) -> str:
        """Return the part of a cell's name that tells how it differs from a recipe."""
        refined = self.refiner_epochs and recipe.observation.phase_epochs
        return f"{self.size}-r{self.refiner_epochs}" if refined else self.size

    def reference(self) -> None:
        """Score training images against test images: the floor."""
        if not self.cell("floor-0-train").exists():
            some = self.splits.train.head(SAMPLES)
            found = self.compared(some.batches(250))
            self.write("floor-0-train", model="floor", prior="train", seed=0, scores=plain(found))

    def varied(self, recipe: Recipe, seed: int) -> Recipe:
        """Return a recipe with what the command line changes."""
        observation, training = recipe.observation, recipe.training
        if self.refiner_epochs and isinstance(observation, RefinedSection):
            observation = dataclasses.replace(observation, epochs=self.refiner_epochs)
        return dataclasses.replace(
            recipe,
            seed=seed,
            observation=observation,
            data=dataclasses.replace(recipe.data.at(self.root), limit=self.limit or recipe.data.limit),
            latent=dataclasses.replace(recipe.latent, dim=self.dim or recipe.latent.dim),
            training=dataclasses.replace(training, epochs=self.epochs or training.epochs),
        )

    def trained(self, model: str, seed: int) -> tuple[Path, Recipe]:
        """Train a recipe, unless that is done; return its run folder and recipe."""
        recipe = self.varied(Recipe.load(ROOT / "models" / self.data / f"{model}.toml"), seed)
        run = self.run(model, self.size_of(recipe), seed)
        if not (run / "weights.safetensors").exists():
            if not run.exists() and not (
                model in REFINED and begin_with(self.run(REFINED[model], self.size, seed), run, recipe)
            ):
                write_text(run / "recipe.toml", recipe.to_toml())
            command = [sys.executable, "-m", "ncode_gen.train", "--resume", str(run), "--data.root", self.root]
            command += ["--device", str(self.device)]
            subprocess.run(command, cwd=ROOT, check=True)
        return run, load_recipe(run)

    def run(self, model: str, size: str, seed: int) -> Path:
        """Return the run folder of a model."""
        return ROOT / "runs" / "generation" / f"{self.data}-{model}{size}-{seed}"

    def model(self, name: str, seed: int) -> None:
        """Train a model and score it with every prior."""
        recipe = Recipe.load(ROOT / "models" / self.data / f"{name}.toml")
        size = self.size_of(recipe)
        priors = [prior for prior in priors_of(recipe) if not self.priors or prior in self.priors]
        wanted = [prior for prior in priors if not self.cell(f"{name}{size}-{seed}-{prior}").exists()]
        if not wanted:
            return
        run, recipe = self.trained(name, seed)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        model = load_run(run, self.device)
        own = model.prior
        common = {
            "model": name,
            "seed": seed,
            "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            or sum(parameter.numel() for parameter in model.parameters()),
            "epochs": len(rows),
            "training_seconds": round(sum(row["seconds"] for row in rows), 1),
            "encoder": recipe.encoder.kind,
            "decoder": recipe.decoder.kind,
            "dim": recipe.latent.dim,
            "recipe": dataclasses.replace(recipe, data=recipe.data.at("data" if recipe.data.place else "")).to_toml(),
        }
        latent_scores = self.latents(model, recipe.objective.uses_stochastic_targets)
        for prior in wanted:
            start = time.perf_counter()
            # A recipe's own flow is kept, which training ended with: a fit of the same latents with the same seed.
            is_own = prior == "own" or (prior == "flow" and recipe.prior.kind == "flow" and not recipe.prior.joint)
            model.prior = own if is_own else new_prior(prior, model.dim, own)
            if not is_own:
                fit_prior(model.prior.to(self.device), self.fitted_to(model, seed), seed)
            fitting = time.perf_counter() - start
            scores = compare_features(self.real, self.drawn(model, seed), seed) | latent_scores
            found: dict[str, Any] = {"prior": prior, "fitting_seconds": round(fitting, 1)}
            if isinstance(model.prior, GaussianMixture):
                found["components"] = model.prior.components
            elif isinstance(model.prior, FlowPrior):
                found["iterations"] = model.prior.iterations
            if isinstance(model.observation, Refined):
                found["fid_by_refiner_nfe"] = self.by_refiner_steps(
                    model, model.observation.refiner, seed, scores["fid"]
                )
                found["matching"] = rows[-1]["validation_matching"]
            elif model.prior.active_flow is not None:
                found["fid_by_nfe"] = self.by_steps(model, seed)
            # A deep flow's density takes d derivatives an evaluation: too slow for all these particles.
            deep = isinstance(model.prior, FlowPrior) and model.prior.layers > 1
            if not model.posterior.deterministic and self.particles and not deep:
                likelihood = score_likelihood(model, self.splits.test, self.particles, seed=seed, quiet=True)
                scores |= {"elbo_nats": likelihood.elbo, "nll_nats": likelihood.nll}
                found |= {"particles": self.particles, "solver": likelihood.solver, "nll_gap": likelihood.nll_gap}
            self.write(f"{name}{size}-{seed}-{prior}", **common, **found, scores=plain(scores))
            if seed == 0:
                drawn = model.sample(40, torch.Generator().manual_seed(0))
                contact_sheet(drawn.cpu(), self.sheet(f"{name}{size}-{prior}"))

    def fitted_to(self, model: LatentModel, seed: int) -> Tensor:
        """Return what priors are fitted to: posterior samples (n, d) of the training images, on the CPU."""
        generator = seeded(seed + 2)
        batches = self.splits.train.batches(500, device=self.device)
        return torch.cat([model.sample_posterior(batch, generator).cpu() for batch in batches])

    def sheet(self, name: str) -> Path:
        """Return the file of a contact sheet."""
        return self.folder / "sheets" / f"{name}.png"

    def latents(self, model: LatentModel, stochastic_targets: bool) -> dict[str, Score]:
        """Score what does not depend on the prior."""
        test, train = self.splits.test, self.splits.train
        scores = score_reconstruction(model, test, stochastic_targets=stochastic_targets)
        copies = self.network.of(model.reconstruct(batch) for batch in test.batches(250, device=self.device))
        scores["reconstruction_fid"] = frechet_score(self.real, copies.to(self.scorer))
        scores["interpolation"] = interpolation_score(model, test.first(201, self.device), self.network)
        if isinstance(train, TensorImages) and isinstance(test, TensorImages) and train.labels is not None:
            scores["probe"] = linear_probe(model, train, test)
        return scores

    def by_refiner_steps(self, model: LatentModel, refiner: Refiner, seed: int, full: Score) -> dict[str, float]:
        """Return the Frechet distance by evaluations of the refiner's field; with none, of decoder means.

        That of the refiner's own number is known: `full`.
        """
        own, found = refiner.flow.options, {}
        for steps in (0, 1, 2, 4):
            if steps == own.steps:
                found[str(refiner.evaluations(steps))] = full.value
                continue
            refiner.flow.options = own.but(steps=max(1, steps))
            drawn = self.drawn(model, seed, refine=steps > 0)
            found[str(refiner.evaluations(steps) if steps else 0)] = self.distance(drawn)
        refiner.flow.options = own
        return found

    def by_steps(self, model: LatentModel, seed: int) -> dict[str, float]:
        """Return the Frechet distance by evaluations of the prior's field."""
        return {str(4 * steps): self.distance(self.drawn(model, seed, steps)) for steps in COARSE_STEPS}

    def peer(self, python: str, name: str, seed: int) -> None:
        """Train one of pythae's models by its own package and score what it draws."""
        if self.cell(f"pythae-{name}{self.size}-{seed}-mixture10").exists():
            return
        recipe = Recipe.load(ROOT / "models" / self.data / "rae-l2.toml")
        held = ROOT / "runs" / "generation" / f"{self.data}-pythae-{name}{self.size}-{seed}.npz"
        held.parent.mkdir(parents=True, exist_ok=True)
        if not held.exists():
            script = str(ROOT / "eval" / "pythae_peer.py")
            epochs = self.epochs or recipe.training.epochs
            choices = ["--latent", self.dim or recipe.latent.dim, "--epochs", epochs, "--seed", seed]
            command = [python, script, name, self.data, "--root", self.root, "--out", str(held), *map(str, choices)]
            subprocess.run(command, cwd=ROOT, check=True)
        drawn = np.load(held)

        def images(key: str) -> Tensor:
            return torch.from_numpy(drawn[key]).float() / 255

        copies = self.compared(images("reconstructions").split(250))
        for prior in ("normal", "mixture10"):
            scores = self.compared(images(prior).split(250), seed)
            scores["reconstruction_fid"] = copies["fid"]
            self.write(
                f"pythae-{name}{self.size}-{seed}-{prior}",
                model=f"pythae {name}",
                prior=prior,
                seed=seed,
                parameters=int(drawn["parameters"]),
                epochs=self.epochs or recipe.training.epochs,
                training_seconds=round(float(drawn["seconds"]), 1),
                dim=self.dim or recipe.latent.dim,
                scores=plain(scores),
            )
            if seed == 0:
                # pythae's mixture draws one Gaussian after the other.
                some = torch.randperm(len(drawn[prior]), generator=torch.Generator().manual_seed(0))[:40]
                contact_sheet(images(prior)[some], self.sheet(f"pythae-{name}{self.size}-{prior}"))


def main() -> None:
    """Run the cells that are not done, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("digits", "mnist", "fashion-mnist", "folder"))
    parser.add_argument("--models", nargs="*", default=[*AUTOENCODERS, *REFINED, *VARIATIONAL, *FLAGSHIPS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--root", default="data", help="folder of the image sets, or of the pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; pythae chooses its own")
    parser.add_argument("--particles", type=int, default=128, help="particles of the likelihood; 0 leaves it out")
    parser.add_argument("--dim", type=int, default=0, help="latent dimensions, instead of the recipes'")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of training, instead of the recipes'")
    parser.add_argument("--refiner-epochs", type=int, default=0, help="epochs of refiners, instead of the recipes'")
    parser.add_argument("--limit", type=int, default=0, help="training images; 0 for all")
    parser.add_argument(
        "--features", choices=known_kinds("features"), help="feature network, instead of the set's usual one"
    )
    parser.add_argument("--priors", nargs="*", choices=PRIORS, default=[], help="only these of a model's priors")
    parser.add_argument("--peers", help="a Python that has pythae")
    parser.add_argument("--peer-models", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    if not options.table:
        study = Study(options)
        study.reference()
        jobs: dict[str, Callable[[], None]] = {}
        for seed in options.seeds:
            for name in options.models:
                jobs[f"{name}, seed {seed}"] = partial(study.model, name, seed)
            for name in options.peer_models if options.peers else ():
                jobs[f"pythae's {name}, seed {seed}"] = partial(study.peer, options.peers, name, seed)
        for job in told(jobs):
            job()
    text = table(options.data, RESULTS / "generation" / options.data)
    write_text(RESULTS / f"generation-{options.data}.md", text)
    print(text)


if __name__ == "__main__":
    main()
