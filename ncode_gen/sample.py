"""Generate samples: `python -m ncode_gen.sample RUN --n 64 [--seed 0] [--out FILE.png | FILE.npz | FOLDER/]`."""

from __future__ import annotations

import difflib
import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .command import check_guidance, check_least, parse, run_command
from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from .config import Recipe


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder in checkpoints/."""
    n: int = 64
    """Number of samples."""
    seed: int = 0
    """Seed; the same one gives the same pictures."""
    out: str = ""
    """FILE.png for one grid, FILE.npz for an array (n, H, W, C) in [0, 1], FOLDER/ for single PNGs;
    samples.png if not given."""
    refine: bool = True
    """Whether images are sampled given their latents, where the model has a refiner; else they are decoder means."""
    label: str = ""
    """Class of the samples, by name or number, of a model with labels; "each" for as many of each class."""
    guidance: float = 1.0
    """How far samples are moved towards their label, away from those of any class; 1 for not at all, 1.5 for sharper
    and less varied ones."""
    autoguidance: float | None = None
    """How far samples are moved away from those of the prior's guide, a weaker network, of a model with `prior.guide`;
    1 for not at all, as the recipe says if not given."""
    evaluations: int = 0
    """How often the flow of pixels is evaluated for an image, of a model that has one; 0 as its recipe says."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["float32", "bf16"] = "float32"
    """Arithmetic of decoder and refiner. bf16 is faster where the device has it; pictures then differ by less than a
    grey level on average, and float32 is taken where it has not."""
    plugin: str = ""
    """Module, or Python file, with components of your own; may be given several times."""
    quiet: bool = False
    """Print nothing but errors."""


def main(argv: list[str]) -> None:
    """Generate samples, write them, and print where they are."""
    options = parse(Options, "sample", argv, "Generate samples from a trained model.")
    check_least(options, n=1, evaluations=0)
    check_guidance(options)
    out = options.out or "samples.png"
    single = out.endswith("/") or Path(out).is_dir()
    if not single and Path(out).suffix not in (".png", ".npz"):
        raise UserError(f"--out must end with .png, .npz or / (a folder of PNGs), got {out}")

    import torch

    from .runfolder.run import find_run, load_recipe, load_run
    from .runtime.device import computes_in_bf16, resolve_device
    from .runtime.seeding import seeded

    device = resolve_device(options.device)
    folder = find_run(options.run)
    classes = load_recipe(folder).data.classes
    labels = _labels(options.label, classes, options.n, folder) if options.label else None
    _check_settings(options, folder, load_recipe(folder))
    model = load_run(folder, device)
    if options.evaluations and not model.observation.stochastic:
        raise UserError(f"{folder} has no flow of pixels; leave --evaluations out")
    if options.precision == "bf16":
        if computes_in_bf16(device):
            model.compute_in(torch.bfloat16)
        elif not options.quiet:
            print("This CPU has no native bf16; sampling in float32.")
    numbers = None if labels is None else torch.tensor(labels)
    images = model.sample(
        options.n,
        seeded(options.seed),
        refine=options.refine,
        labels=numbers,
        guidance=options.guidance,
        autoguidance=options.autoguidance,
        evaluations=options.evaluations or None,
    )
    _write(images.cpu(), Path(out), single)
    if not options.quiet:
        print(f"{options.n} samples, seed {options.seed}: {out}")


def _labels(label: str, classes: tuple[str, ...], n: int, folder: Path) -> list[int]:
    """Return the number of each sample's class.

    Raises:
        UserError: the model has no labels, or not this one.
    """
    if not classes:
        raise UserError(f"{folder} was trained without labels; leave --label out, or train with data.classes")
    if label == "each" and "each" not in classes:
        return [i * len(classes) // n for i in range(n)]
    if label in classes:
        return [classes.index(label)] * n
    if label.isdecimal() and int(label) < len(classes):
        return [int(label)] * n
    near = difflib.get_close_matches(label, classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"its classes are {', '.join(classes)}"
    raise UserError(f"{folder} has no class {label}; {hint}")


def _check_settings(options: Options, folder: Path, recipe: Recipe) -> None:
    """Raise a `UserError`, if guidance or the number of evaluations is none, or the model has not what they need."""
    if options.autoguidance not in (None, 1) and not getattr(recipe.prior, "guide", 0):
        raise UserError(f"the prior of {folder} has no guide; leave --autoguidance out, or train with --prior.guide 32")
    if options.guidance != 1 and not options.label:
        reason = "needs a --label" if recipe.data.classes else f"needs labels, without which {folder} was trained"
        raise UserError(f"--guidance {reason}")


def _write(images: Tensor, out: Path, single: bool) -> None:
    import numpy as np

    from .data.pictures import picture_grid, save_marked
    from .runtime.files import write_atomically

    if single:
        _write_singles(images, out)
    elif out.suffix == ".npz":
        buffer = io.BytesIO()
        np.savez(buffer, images=images.permute(0, 2, 3, 1).numpy())
        write_atomically(out, lambda partial: partial.write_bytes(buffer.getvalue()))
    else:
        grid = picture_grid(images)
        write_atomically(out, functools.partial(save_marked, grid))


def _write_singles(images: Tensor, out: Path) -> None:
    """Write a picture for each image, in place of earlier samples."""
    from PIL import Image

    from .data.pictures import save_marked, to_bytes
    from .runtime.files import write_atomically

    digits = len(str(len(images) - 1))
    for path in _earlier_samples(out):
        path.unlink(missing_ok=True)
    for i, picture in enumerate(to_bytes(images).permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)
        write_atomically(out / f"{i:0{digits}d}.png", functools.partial(save_marked, image))


def _earlier_samples(folder: Path) -> list[Path]:
    """Return the pictures of earlier samples in a folder.

    Raises:
        UserError: there are other pictures, which would be taken for samples.
    """
    from .data.picture_folders import find_pictures
    from .data.pictures import is_marked

    if not folder.is_dir():
        return []
    there = find_pictures(folder, 0, samples=True).paths
    own = [path for path in there if path.parent == folder and path.stem.isdigit() and is_marked(path)]
    others = sorted(set(there) - set(own))
    if others:
        raise UserError(
            f"{folder} holds {len(others)} pictures that are not samples of ncode_gen, such as {others[0].name}; name "
            "an empty folder with --out, or remove them"
        )
    return own


if __name__ == "__main__":
    run_command(main)
