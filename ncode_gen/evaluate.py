"""Score a model: `python -m ncode_gen.evaluate RUN --n 10000 [--features NAME] [--particles 128] [--out FILE]`.

Or images that any other generator made, in the same way: `python -m ncode_gen.evaluate FILE.npz --data.name mnist`.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .command import check_guidance, check_least, parse, print_data_notes, run_command
from .config import DataSection, FeaturesSection, find_kind, known_kinds
from .errors import UserError

if TYPE_CHECKING:
    import torch

    from .data import Images
    from .distributions import LatentModel
    from .metrics import FeatureNetwork, Sampling, Score
    from .runtime.workers import Workers

# Why a score may be no number.
UNDEFINED = {
    "interpolation": "no two neighbouring images have different features",
    "psnr": "a reconstruction without an error has no ratio",
}


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder in checkpoints/; or images that any other generator made: an .npz file with an array
    (n, H, W, C), uint8 or floating point in [0, 1], or a folder of pictures. These need --data.name."""
    n: int = 10000
    """Number of samples that are scored against the test images; of images of another generator at most so many, chosen
    at random."""
    features: str = ""
    """Feature network: digits-classifier, mnist-classifier, fashion-classifier, cifar10-classifier (32 x 32, colour),
    inception, efficientnet-lite0 or one of a plugin; that of the recipe, or the image set's own, if not given."""
    features_path: Path | None = None
    """File with the feature network's weights, on machines without a network."""
    particles: int | None = None
    """Particles of the importance-weighted likelihood, 128 if not given, of a flow of pixels 1; 0 leaves likelihoods
    out."""
    likelihood_images: int = 1000
    """Test images at most whose likelihood under a flow of pixels is found, which takes a second or more for each."""
    evaluations: int = 0
    """How often a flow of pixels is evaluated for a sample; 0 as the recipe says."""
    autoguidance: float | None = None
    """Autoguidance of samples, of a model whose prior has a guide; 1 for none, as the recipe says if not given."""
    guidance: float = 1.0
    """Guidance of samples towards labels, of a model with labels; see `python -m ncode_gen.sample --help`."""
    limit: int = 0
    """Score only so many test images; 0 for all."""
    seed: int = 0
    """Seed of samples, targets and noise."""
    out: Path | None = None
    """File of the result; RUN/evaluation.json if not given."""
    refine: bool = True
    """Whether images are sampled given their latents, where the model has a refiner; else they are decoder means."""
    data: Annotated[str, tyro.conf.arg(name="data.name")] = ""
    """Image set that images of another generator are scored against, such as mnist."""
    root: Annotated[str, tyro.conf.arg(name="data.root")] = ""
    """Folder of the images, where it is not the one that the recipe names, or data/ where there is no recipe."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    plugin: str = ""
    """Module, or Python file, with components of your own; may be given several times."""
    quiet: bool = False
    """Print nothing but errors."""


def main(argv: list[str]) -> None:
    """Score samples, likelihoods and reconstructions; print a table and write evaluation.json."""
    options = parse(Options, "evaluate", argv, "Score a trained model, or images of any generator, on held-out images.")
    check_least(options, n=2, particles=0, limit=0, likelihood_images=1, evaluations=0)
    check_guidance(options)
    path = Path(options.run)
    if not options.data:
        if path.suffix == ".npz":
            sets = ", ".join(known_kinds("data"))
            raise UserError(f"{path} does not say which images to score against; add --data.name: {sets}")
        _evaluate_run(options)
    elif (path / "recipe.toml").exists():
        raise UserError(f"{path} is a run, whose recipe says its image set; leave --data.name out")
    elif options.particles is not None or not options.refine:
        raise UserError("images alone have no likelihood and no refiner; leave --particles and --no-refine out")
    elif options.evaluations or options.guidance != 1 or options.autoguidance is not None:
        raise UserError("images alone have no flow of pixels; leave --evaluations, --guidance and --autoguidance out")
    else:
        _evaluate_images(options, path)


def _evaluate_run(options: Options) -> None:
    from .metrics import (
        image_features,
        sample_features,
        score_flow_reconstruction,
        score_labels_of_samples,
        score_reconstruction,
    )
    from .report import write_report
    from .runfolder.history import read_run
    from .runfolder.run import EVALUATION, find_run, load_recipe, load_run, load_run_data, weights_digest
    from .runtime.files import check_writable

    started = time.perf_counter()
    folder = find_run(options.run)
    recipe = load_recipe(folder)
    own = recipe.chosen_features
    workers, device, network = _prepare(options, own if options.features in ("", own.kind) else options.features)
    quiet = options.quiet or not workers.is_main
    model = load_run(folder, device)
    splits = load_run_data(folder, recipe.data.at(options.root))
    print_data_notes(splits.notes, splits.warnings, quiet=quiet)
    test = splits.test
    out = options.out or folder / EVALUATION
    if workers.is_main:
        check_writable(out)
    if options.limit:
        test = test.head(options.limit)

    protocol = _protocol(options, recipe.data.name, test, network, device)
    protocol |= {"n": options.n, "weights_digest": weights_digest(folder), "prior": recipe.prior.kind}
    protocol["warnings"] += splits.warnings
    if splits.files is not None:
        protocol["files_digest"] = splits.files.digest
    if not options.refine:
        protocol["refiner"] = "left out"
    # What takes long is shared by the processes; the rest is the main one's.
    settings = _sampling(options, model, folder, protocol)
    keys: Any = {"seed": options.seed, "quiet": quiet, "workers": workers, "refine": options.refine}
    fake = sample_features(model, network, options.n, settings=settings, **keys)
    real = image_features(network, test, model.device, workers)
    likelihood = _score_likelihood(model, test, options, protocol, quiet, workers)
    if not workers.is_main:
        return
    scores = _compared(real, fake, options, protocol, device)
    if settings.labels is not None:
        scores |= score_labels_of_samples(network, real, fake, test, settings.labels)
    stochastic = recipe.objective.uses_stochastic_targets
    scores |= score_reconstruction(model, test, stochastic_targets=stochastic, seed=options.seed)
    if not recipe.observation.pixelwise:
        scores |= score_flow_reconstruction(model, test, seed=options.seed)
    _score_latents(model, splits.train, test, network, options, scores, protocol["warnings"])
    scores |= likelihood
    _write(out, recipe.name, protocol, scores, started, quiet=options.quiet)
    record = read_run(folder)
    if record.report and out == folder / EVALUATION:
        write_report(record, record.report)


def _sampling(options: Options, model: LatentModel, folder: Path, protocol: dict[str, Any]) -> Sampling:
    """Return how samples are made: of a model with labels, as many of each class; it goes into the protocol.

    Raises:
        UserError: the model has no labels, or no flow of pixels.
    """
    import torch

    from .metrics import Sampling

    classes = model.observation.classes
    if not options.refine and not model.observation.stochastic:
        raise UserError(f"{folder} has no refiner; leave --no-refine out")
    if options.guidance != 1 and not classes:
        raise UserError(f"{folder} was trained without labels; leave --guidance out")
    if options.evaluations and not model.observation.stochastic:
        raise UserError(f"{folder} has no flow of pixels; leave --evaluations out")
    if options.autoguidance not in (None, 1) and getattr(model.prior, "guide", None) is None:
        raise UserError(f"the prior of {folder} has no guide; leave --autoguidance out, or train with --prior.guide 32")
    for name in ("evaluations", "autoguidance"):
        if getattr(options, name) != getattr(Options, name):
            protocol[name] = getattr(options, name)
    if classes:
        protocol |= {"labels": "as many samples of each class", "guidance": options.guidance}
    labels = torch.arange(options.n) % classes if classes else None
    return Sampling(labels, options.guidance, options.autoguidance, options.evaluations or None)


def _evaluate_images(options: Options, path: Path) -> None:
    """Score images that another generator made."""
    import torch

    from .data import load_data
    from .data.image_files import fit_channels, images_digest, read_images
    from .metrics import image_features
    from .runtime.files import check_writable
    from .runtime.seeding import seeded

    started = time.perf_counter()
    section = _data_section(options)
    workers, device, network = _prepare(options, options.features or section.features)
    given = read_images(path)
    channels, side, _ = given.shape
    # Sets without a size or colours of their own take those of the images.
    if section.name in ("celeba", "folder"):
        changes: dict[str, Any] = {"size": side} | ({"grey": True} if channels == 1 else {})
        section = dataclasses.replace(section, **changes)
    name, splits = section.name, load_data(section)
    test = splits.test
    given = fit_channels(given, test.shape[0])
    print_data_notes((*given.notes, *splits.notes), splits.warnings, quiet=options.quiet or not workers.is_main)
    if given.shape != test.shape:
        here, there = (" x ".join(map(str, (*shape[1:], shape[0]))) for shape in (given.shape, test.shape))
        raise UserError(f"{path} holds images of {here} (height x width x channels), those of {name} are {there}")
    if len(given) < 2:
        raise UserError(f"{path} holds one image; at least 2 are needed")
    out = options.out or path.with_name(f"{path.stem}-evaluation.json")
    if workers.is_main:
        check_writable(out)
    if options.limit:
        test = test.head(options.limit)

    protocol = _protocol(options, name, test, network, device)
    protocol["warnings"] += [*given.notes, *splits.warnings]
    protocol |= {"images": path.name, "images_digest": images_digest(given), "images_held": len(given)}
    if len(given) > options.n:
        order = torch.randperm(len(given), generator=seeded(options.seed))
        given = given.select(order[: options.n])
    protocol |= {"n": len(given), "likelihood": "images alone have no likelihood"}
    fake = image_features(network, given, device, workers)
    real = image_features(network, test, device, workers)
    if not workers.is_main:
        return
    scores = _compared(real, fake, options, protocol, device)
    _write(out, path.name, protocol, scores, started, quiet=options.quiet)


def _data_section(options: Options) -> DataSection:
    """Return the image set that a command line names."""
    section = find_kind("data", options.data, "--data.name")()
    assert isinstance(section, DataSection)
    return section.at(options.root)


def _prepare(options: Options, features: FeaturesSection | str) -> tuple[Workers, torch.device, FeatureNetwork]:
    """Return the processes that share the work, this one's device, and the feature network."""
    from .metrics import load_features
    from .runtime.device import resolve_device, use_full_precision
    from .runtime.workers import join_workers

    use_full_precision()
    workers, device = join_workers(options.device)
    device = device or resolve_device(options.device)
    return workers, device, load_features(features, options.features_path, device)


def _protocol(
    options: Options, data: str, test: Images, network: FeatureNetwork, device: torch.device
) -> dict[str, Any]:
    """Return what all evaluations say of how they were made."""
    from .runtime.environment import describe_environment

    return {
        "data": data,
        "split": "test",
        "test_images": len(test),
        "seed": options.seed,
        "features": {"name": network.name, "size": network.size, "digest": network.digest},
        "warnings": [],
        "interval": "95 %, value -+ 1.96 standard errors (bootstrap for fid, ten disjoint parts for kid), Wilson's for "
        "shares",
        "environment": describe_environment(device, options.seed),
    }


def _compared(
    real: torch.Tensor, fake: torch.Tensor, options: Options, protocol: dict[str, Any], device: torch.device
) -> dict[str, Score]:
    """Return the distances between features; warnings go into the protocol."""
    from .metrics import compare_features, distance_device, few_images_warning

    where = distance_device(device)
    protocol["warnings"] += few_images_warning(real, fake)
    return compare_features(real.to(where), fake.to(where), options.seed)


def _write(
    out: Path, name: str, protocol: dict[str, Any], scores: dict[str, Score], started: float, *, quiet: bool
) -> None:
    """Write an evaluation, and show it."""
    from .runfolder.records import write_record

    protocol["seconds"] = round(time.perf_counter() - started, 1)
    for key in [key for key, score in scores.items() if not score.defined]:
        reason = UNDEFINED.get(key, "its value is no finite number")
        protocol["warnings"].append(f"{key}: undefined for these images ({reason}); left out")
        del scores[key]
    plain = {key: dataclasses.asdict(score) for key, score in scores.items()}
    write_record(out, {"protocol": protocol, "scores": plain})
    if not quiet:
        _print_table(name, protocol, scores)
        print(f"written to {out}")


def _score_latents(
    model: LatentModel,
    train: Images,
    test: Images,
    network: FeatureNetwork,
    options: Options,
    scores: dict[str, Score],
    warnings: list[str],
) -> None:
    """Score what the latents are good for, where the images have what that takes."""
    from .metrics import interpolation_score, linear_probe

    if len(test) > 1:
        scores["interpolation"] = interpolation_score(model, test.first(201, model.device), network)
    if train.labels is not None and test.labels is not None:
        if len(train.labels.unique()) > 1:
            scores["probe"] = linear_probe(model, train, test, options.seed)
        else:
            warnings.append("probe: undefined for training images of one class; left out")


def _score_likelihood(
    model: LatentModel, test: Images, options: Options, protocol: dict[str, Any], quiet: bool, workers: Workers
) -> dict[str, Score]:
    """Return likelihoods and evaluations of the flow; how they were made goes into the protocol."""
    import torch

    from .distributions import PixelFlow
    from .metrics import mean_score, score_likelihood, score_pixel_likelihood
    from .runtime.progress import console

    flow = isinstance(model.observation, PixelFlow)
    particles = options.particles if options.particles is not None else 1 if flow else 128
    protocol["particles"] = particles
    protocol["likelihood"] = model.observation.protocol
    scores: dict[str, Score] = {}
    if model.posterior.flow is not None:
        evaluations = model.trajectory(test.first(500, model.device), torch.tensor([0.0, 1.0])).nfe
        scores["nfe"] = mean_score(torch.full((2,), float(evaluations)))
    if particles == 0:
        return scores
    if model.posterior.deterministic:
        protocol["likelihood"] = "no likelihood, since the posterior of a deterministic autoencoder has no density"
        return scores
    try:
        if flow:
            some = test.head(options.likelihood_images)
            protocol["likelihood_images"] = len(some)
            solved = score_pixel_likelihood(model, some, particles, seed=options.seed, quiet=quiet, workers=workers)
            protocol["solver"] = {"refined": f"rk4 x {solved.steps}", "moved_bits_per_dim": solved.moved}
            scores |= {"bits_per_dim_bound": solved.bound, "rate_nats": solved.rate}
            if solved.solved is not None:
                return scores | {"bits_per_dim": solved.solved}
            raise ValueError(
                f"the likelihood by solving still moves by {solved.moved:.3g} bits a dimension at {solved.steps} steps"
            )
        found = score_likelihood(model, test, particles, seed=options.seed, quiet=quiet, workers=workers)
    except ValueError as error:
        # The other scores stand; a likelihood that the solver decides is not printed.
        protocol["warnings"].append(str(error))
        if workers.is_main:
            console.print(f"no likelihood: {error}")
        return scores
    protocol["solver"] = {
        "refined": found.solver,
        "coarse": found.coarse_solver,
        "elbo_gap_nats": found.elbo_gap,
        "nll_gap_nats": found.nll_gap,
        "moved_nats": found.moved,
    }
    return scores | {"elbo_nats": found.elbo, "nll_nats": found.nll, "bits_per_dim": found.bits_per_dim}


def _print_table(name: str, protocol: dict[str, Any], scores: dict[str, Score]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .report.score_labels import UNITS, score_labels, solver_note

    solver, labels = protocol.get("solver"), score_labels(protocol)
    table = Table(title=f"{name}: {protocol['test_images']} test images, {protocol['likelihood']}")
    for column in ("score", "value", "95 % interval", "unit"):
        table.add_column(column, justify="left" if column in ("score", "unit") else "right")
    for key, score in scores.items():
        interval = f"{score.low:.4g} to {score.high:.4g}"
        table.add_row(labels.get(key, key), f"{score.value:.4g}", interval, UNITS.get(key, ""))
    console = Console(width=110, highlight=False, markup=False, emoji=False)
    console.print(table)
    if solver and "moved_bits_per_dim" in solver:
        moved = f"{solver['moved_bits_per_dim']:.4f} bits a dimension"
        console.print(f"likelihoods with {solver['refined']}, which moved by {moved} at the last doubling")
    elif solver and solver["refined"] != "none":
        console.print(f"likelihoods with {solver_note(solver)}")
    for warning in protocol["warnings"]:
        console.print(f"warning: {warning}")


if __name__ == "__main__":
    run_command(main)
