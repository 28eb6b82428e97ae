"""Make figures and a report of a model: `python -m ncode_gen.gallery RUN [--out FOLDER] [--format png|pdf|svg]`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .command import parse, print_data_notes, run_command


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, or a folder in checkpoints/."""
    out: Path | None = None
    """Folder of the pictures; RUN/gallery if not given."""
    format: Literal["png", "pdf", "svg"] = "png"
    """png, or pdf or svg for vector graphics (the animation is always a GIF)."""
    root: Annotated[str, tyro.conf.arg(name="data.root")] = ""
    """Folder of the images, where it is not the one that the recipe names."""
    seed: int = 0
    """Seed of the samples."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    plugin: str = ""
    """Module, or Python file, with components of your own; may be given several times."""
    quiet: bool = False
    """Print nothing but errors."""


def main(argv: list[str]) -> None:
    """Make figures of samples, reconstructions, interpolations and trajectories, an animation, and a report."""
    options = parse(
        Options, "gallery", argv, "Make figures of samples, reconstructions and trajectories, and write a report."
    )

    from .figures import draw_gallery
    from .report import write_report
    from .runfolder.history import REPORT, read_run
    from .runfolder.run import find_run, load_recipe, load_run, load_run_data
    from .runtime.device import resolve_device

    folder = find_run(options.run)
    recipe = load_recipe(folder)
    model = load_run(folder, resolve_device(options.device))
    splits = load_run_data(folder, recipe.data.at(options.root))
    print_data_notes(splits.notes, splits.warnings, quiet=options.quiet)
    out = options.out or folder / "gallery"
    files = draw_gallery(
        model, splits.test, out, title=recipe.name, kind=options.format, seed=options.seed, classes=recipe.data.classes
    )
    files.append(write_report(read_run(folder, out), out / REPORT))
    if not options.quiet:
        for file in files:
            print(file)


if __name__ == "__main__":
    run_command(main)
