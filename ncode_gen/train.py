"""Train a model: `python -m ncode_gen.train [MODEL.toml] [--section.key value ...]`."""

import dataclasses
import difflib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .command import parse, print_data_notes, run_command, without_plugins
from .config import DataSection, Recipe, changed_keys
from .config.command_line import all_flags, chosen_kinds, recipe_of, with_recipe
from .errors import UserError
from .runtime.files import check_links
from .runtime.paths import bundled

RECIPE = "recipe.toml"
DESCRIPTION = "Train a generative model whose encoder controls the flow of its latents."


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    model: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[MODEL.toml]")] = None
    """Model file, such as models/mnist/ncode-open.toml; without one, the default model on the embedded digits."""
    out: Path | None = None
    """Run folder; runs/NAME if not given."""
    resume: Path | None = None
    """Run folder whose training continues; one that does not exist yet begins, so that one command serves a job that is
    queued again. A model file beside it says what begins."""
    init: str = ""
    """Run whose weights the training starts from (a run folder, a folder in checkpoints/, USER/NAME), where names and
    shapes are the same: to go on with other images, labels or keys."""
    plugin: str = ""
    """Module, or Python file, with components of your own; may be given several times."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What each of several processes holds of the model: all, or (fsdp) a share of weights, gradients and moments."""
    quiet: bool = False
    """Print nothing but errors."""


def parse_command(argv: list[str], base: Recipe) -> tuple[Options, Recipe]:
    """Return the options and the recipe of a command line, whose flags change a recipe."""
    base = chosen_kinds(base, argv)
    options = parse(with_recipe(Options, base), "train", argv, DESCRIPTION)
    return options, recipe_of(options.recipe, base)  # type: ignore[attr-defined]


def main(argv: list[str]) -> None:
    """Train, make the gallery, and print its path."""
    argv = without_plugins(argv)
    # What model file or run is meant decides which flags there are.
    options = parse(all_flags(Options), "train", [word for word in argv if word not in ("-h", "--help")], DESCRIPTION)
    source, base = options.model, Recipe()
    stored = options.resume is not None and (options.resume / RECIPE).is_file()
    if stored and options.resume is not None:
        check_links(options.resume)
        base = Recipe.load(options.resume / RECIPE, stored=True)
    elif options.resume is not None and not _may_begin(options.resume, source):
        raise UserError(
            f"{options.resume} is not a run folder: it holds no recipe.toml, so there is nothing to resume; name a "
            "model file too to begin there"
        )
    elif source is not None:
        base = Recipe.load(_located(source))
    options, recipe = parse_command(argv, base)
    recipe.check("command line")
    if stored and options.resume is not None:
        _check_split(base.data, recipe.data, options.resume)
        if options.model is not None:
            said = parse_command(argv, Recipe.load(_located(options.model)))[1]
            _check_model(said, recipe, options.model, options.resume)
    folder = options.resume or options.out or Path("runs") / recipe.name
    if str(folder).encode(errors="ignore").decode() != str(folder):
        raise UserError(f"{folder} is not a UTF-8 name, which weights need; name another folder with --out")
    _train(options, recipe, folder)


def _train(options: Options, recipe: Recipe, folder: Path) -> None:
    from .runfolder.run import WEIGHTS, load_run_data
    from .runfolder.state import has_state
    from .runtime.device import resolve_device
    from .runtime.signals import Interrupted
    from .runtime.workers import join_workers
    from .training import train

    if options.resume is None and ((folder / WEIGHTS).exists() or has_state(folder)):
        raise UserError(
            f"{folder} already holds a run; name another folder with --out, remove it, or continue training with "
            f"--resume {folder}"
        )
    workers, device = join_workers(options.device, sharded=options.strategy == "fsdp")
    device = device or resolve_device(options.device)
    splits = load_run_data(folder, recipe.data)
    if workers.is_main:
        print_data_notes(splits.notes, splits.warnings, quiet=options.quiet)
    resume = options.resume is not None
    try:
        shared: Any = {"quiet": options.quiet, "workers": workers, "init": options.init}
        model = train(recipe, splits, folder, device=device, resume=resume, **shared)
    except Interrupted as stopped:
        raise Interrupted(
            stopped.number, f"stopped. Continue with: python -m ncode_gen.train --resume {folder}"
        ) from None
    if not workers.is_main:
        return
    from .report import write_report
    from .runfolder.history import GALLERY, REPORT, read_run

    pictures = folder / GALLERY
    if not options.quiet:
        print(f"trained {recipe.name}: {folder}")
    try:
        from .figures import draw_gallery  # matplotlib takes a second, which the first step need not wait for

        classes = splits.classes if recipe.data.classes else ()
        draw_gallery(model, splits.test, pictures, title=recipe.name, classes=classes)
    except UserError:
        raise
    except Exception as error:  # a figure is not worth losing the training
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        print(
            f"warning: the gallery could not be made ({reason}); the model is trained, and "
            f"python -m ncode_gen.gallery {folder} makes it again",
            file=sys.stderr,
        )
    report = write_report(read_run(folder), pictures / REPORT)
    if not options.quiet:
        print(f"report: {report}")
        print(f"gallery: {pictures}")


def _may_begin(folder: Path, model: Path | None) -> bool:
    """Return whether a run may begin where none is: in an empty folder, or in a new one if a model is named."""
    if not folder.exists():
        return model is not None
    return folder.is_dir() and not any(folder.iterdir())


def _check_model(said: Recipe, now: Recipe, model: Path, folder: Path) -> None:
    """Refuse a model file that differs from the run that is resumed; the same command may begin and resume.

    Args:
        said: what the model file and the command line say.
        now: what the run and the command line say.
        model: the model file.
        folder: run folder.

    Raises:
        UserError: they differ; the message names the keys.
    """
    held = now.data.classes if said.data.classes == ("auto",) else said.data.classes
    changes: Any = {"classes": held}
    said = dataclasses.replace(said, data=dataclasses.replace(said.data, **changes))
    differing = sorted(changed_keys(said.to_dict(), now.to_dict()).keys() - {"name"})
    if differing:
        raise UserError(
            f"{folder} holds a run of another model than {model}: they differ in {', '.join(differing)}; leave the "
            "model file out to go on with the run's own, and say on the command line what is to change"
        )


def _check_split(before: DataSection, now: DataSection, folder: Path) -> None:
    """Refuse another split of a run's images, which would move test images into training."""
    for key in before.split_keys if now.name == before.name else ():
        was, wish = getattr(before, key), getattr(now, key)
        if was != wish:
            raise UserError(
                f"data.{key} of {folder} is {was} and decides which images are held out, so it cannot become {wish}; "
                "leave it out, or train from scratch"
            )


def _located(source: Path) -> Path:
    """Return the model file, looked for beside the package too, so that models/... works from anywhere.

    Raises:
        UserError: models/... names no file there.
    """
    if source.exists() or source.parts[:1] != ("models",):
        return source
    places = bundled("models")
    found = next((path for place in places if (path := place / source.relative_to("models")).exists()), None)
    if found is None:
        known = {f"models/{path.relative_to(place).as_posix()}" for place in places for path in place.rglob("*.toml")}
        near = difflib.get_close_matches(source.as_posix(), sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else "see the folder models/ for those that exist"
        raise UserError(f"no model file at {source}; {hint}")
    return found


if __name__ == "__main__":
    run_command(main)
