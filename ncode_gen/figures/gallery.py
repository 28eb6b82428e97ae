"""Every picture of a model in one folder."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from ..data.images import Images
from ..distributions import LatentModel, PixelFlow
from ..runtime.seeding import seeded
from .grids import labelled_rows
from .pixel_flow import EVALUATIONS, full_code_interpolation, pixel_flow_figures
from .style import STYLE, FileFormat, save
from .trajectories import draw_film_strip, draw_image_trajectories, draw_paths, save_animation

FIGURES = (
    *("samples", "reconstructions", "interpolations", "trajectories", "filmstrip", "animation"),
    *("decoder-trajectory", "refiner-trajectory", "pixels-trajectory", "controls", "noises", "labels"),
)
CONTEXT = 1000


@mpl.rc_context(STYLE)
def draw_gallery(
    model: LatentModel,
    images: Images,
    folder: Path,
    *,
    title: str,
    kind: FileFormat = "png",
    seed: int = 0,
    classes: Sequence[str] = (),
) -> list[Path]:
    """Draw samples, reconstructions, interpolations, latent paths, a film strip and an animation.

    Where decoder or refiner is a flow, also how images arise along it; of a flow of pixels, what control and noise
    decide.

    Args:
        model: the model, in eval mode.
        images: held-out images.
        folder: where the pictures go; made if absent.
        title: name of the model, printed on the pictures.
        kind: "png", or "pdf" or "svg" for vector graphics (the animation is always a GIF).
        seed: seed of the samples.
        classes: names of the classes, of a model with labels.

    Returns:
        The files written; without a flow there are no trajectories.

    Raises:
        UserError: the folder cannot be written.
    """
    held_out = images.first(CONTEXT, model.device)
    few = held_out[:8]
    files = []

    samples = model.sample(64, seeded(seed))
    figure = labelled_rows(samples.split(8), (), f"{title}: samples, seed {seed}", cell=0.5)
    files.append(save(figure, folder / "samples", kind))

    files.append(save(_reconstructions(model, held_out[:20], title, seed), folder / "reconstructions", kind))

    files.append(save(_interpolations(model, few, title), folder / "interpolations", kind))

    paths = draw_paths(model, few[:7], held_out, title)
    if paths is not None:
        files.append(save(paths, folder / "trajectories", kind))
        files.append(save(draw_film_strip(model, few[:6], title), folder / "filmstrip", kind))
        files.append(save_animation(model, held_out[:16], folder / "animation.gif"))
    further = draw_image_trajectories(model, few[:6], title).items()
    for name, figure in (*further, *pixel_flow_figures(model, few, title, classes, seed)):
        files.append(save(figure, folder / name, kind))
    for name in FIGURES:  # of an earlier model, which had what this one has not
        stale = folder / (f"{name}.gif" if name == "animation" else f"{name}.{kind}")
        if stale not in files:
            stale.unlink(missing_ok=True)
    return files


def _reconstructions(model: LatentModel, many: torch.Tensor, title: str, seed: int) -> Figure:
    latents = model.encode(many)
    kinds = {"original": many, "reconstruction": model.decode(latents)}
    if isinstance(model.observation, PixelFlow):
        kinds["fresh noise"] = model.sample_images(latents, seeded(seed))
        kinds["own noise"] = model.reconstruct(many, start="inverted", evaluations=EVALUATIONS)
    elif model.observation.stochastic:
        kinds["refined"] = model.sample_images(latents, seeded(seed))
    half = (len(many) + 1) // 2
    rows = [pictures[:half].cpu() for pictures in kinds.values()]
    labels = list(kinds)
    if len(many) == 2 * half:
        rows += [pictures[half:].cpu() for pictures in kinds.values()]
        labels *= 2
    return labelled_rows(rows, labels, f"{title}: held-out images")


def _interpolations(model: LatentModel, images: torch.Tensor, title: str, points: int = 9) -> Figure:
    latents = model.encode(images)
    ends = [(i, i + 1) for i in range(0, len(images) - 1, 2)] or [(0, 0)]
    rows = []
    for start, end in ends:
        weights = torch.linspace(0, 1, points, device=latents.device).unsqueeze(1)
        if isinstance(model.observation, PixelFlow):
            between = full_code_interpolation(model, images, start, end, points).cpu()
        else:
            between = model.decode(torch.lerp(latents[start], latents[end], weights)).cpu()
        rows.append(torch.cat([images[start : start + 1].cpu(), between, images[end : end + 1].cpu()]))
    labels = [f"{start + 1} to {end + 1}" for start, end in ends]
    return labelled_rows(rows, labels, f"{title}: straight lines between latents; originals at the ends")
