"""Train a model: `python -m ncode_gen.train [MODEL.toml] [--section.key value ...]`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .command import parse, run_command
from .errors import UserError
from .files import check_links
from .recipe import Recipe


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    model: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[MODEL.toml]")] = None
    """Model file, such as models/mnist/ncode-open.toml; without one, the default model on the embedded digits."""
    out: Path | None = None
    """Run folder; runs/NAME if not given."""
    resume: Path | None = None
    """Run folder whose training goes on."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds of the model: all, or (fsdp) a share of weights, gradients and moments."""
    quiet: bool = False
    """Print nothing but errors."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def main(argv: list[str]) -> None:
    """Train, draw the gallery, and end with its path."""
    description = "Train a generative model whose encoder controls the flow of its latents."
    options = parse(Options, "train", argv, description)
    source = options.model
    if options.resume is not None:
        if source is not None:
            raise UserError("give a model file or --resume, not both: a run folder holds its own recipe")
        source = options.resume / "recipe.toml"
        if not source.is_file():
            raise UserError(
                f"{options.resume} is no run folder: it holds no recipe.toml, so there is nothing to resume"
            )
        check_links(options.resume)
    if source is not None:
        default = Options(recipe=Recipe.load(_located(source), stored=options.resume is not None))
        options = parse(Options, "train", argv, description, default)
    recipe = options.recipe
    recipe.check("command line")
    folder = options.resume or options.out or Path("runs") / recipe.name

    from .data import load_data
    from .run import WEIGHTS, resolve_device
    from .signals import Interrupted
    from .state import has_state
    from .trainer import train
    from .workers import join_workers

    if options.resume is None and ((folder / WEIGHTS).exists() or has_state(folder)):
        raise UserError(
            f"{folder} already holds a run; name another folder with --out, remove it, or go on training with "
            f"--resume {folder}"
        )
    workers, device = join_workers(options.device, sharded=options.strategy == "fsdp")
    device = device or resolve_device(options.device)
    splits = load_data(recipe.data, recipe.training.workers)
    try:
        model = train(
            recipe,
            splits,
            folder,
            device=device,
            resume=options.resume is not None,
            quiet=options.quiet,
            workers=workers,
        )
    except Interrupted as stopped:
        raise Interrupted(stopped.number, f"stopped. Go on with: python -m ncode_gen.train --resume {folder}") from None
    if not workers.leads:
        return
    from .figures import draw_gallery  # matplotlib takes a second, which the first step need not wait for
    from .history import GALLERY, REPORT, read_run
    from .report import write_report

    pictures = folder / GALLERY
    draw_gallery(model, splits.test, pictures, title=recipe.name)
    report = write_report(read_run(folder), pictures / REPORT)
    if not options.quiet:
        print(f"trained {recipe.name}: {folder}")
        print(f"report: {report}")
        print(f"gallery: {pictures}")


def _located(source: Path) -> Path:
    """Return the model file, looked for beside the package too, so that models/... works from anywhere.

    Raises:
        UserError: models/... names no file there.
    """
    from .run import shipped

    if source.exists() or source.parts[:1] != ("models",):
        return source
    places = shipped("models")
    found = next((path for place in places if (path := place / source.relative_to("models")).exists()), None)
    if found is None:
        known = {f"models/{path.relative_to(place).as_posix()}" for place in places for path in place.rglob("*.toml")}
        near = difflib.get_close_matches(source.as_posix(), sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else "see the folder models/ for those that exist"
        raise UserError(f"no model file at {source}; {hint}")
    return found


__all__ = ["Options", "main"]

if __name__ == "__main__":
    run_command(main)
