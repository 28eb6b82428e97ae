"""Pictures of a flow of pixels: what its control decides, what its noise decides."""

from collections.abc import Iterator, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..distributions import LatentModel, PixelFlow
from ..runtime.seeding import seeded
from .grids import labelled_rows

EVALUATIONS, NOISES, EACH = 32, 7, 8
TIMES = (0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # denser where the image appears


def pixel_flow_figures(
    model: LatentModel, images: Tensor, title: str, classes: Sequence[str] = (), seed: int = 0
) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the figure of each picture of a flow of pixels; none for another model.

    Args:
        model: the model.
        images: some held-out images, (n, C, H, W) in [0, 1].
        title: name of the model.
        classes: names of the classes, of a model with labels.
        seed: seed of the noise.
    """
    if not isinstance(model.observation, PixelFlow):
        return
    yield "controls", draw_controls(model, images[:7], title, seed)
    yield "noises", draw_noises(model, images[:6], title, seed)
    if classes:
        yield "labels", draw_labels(model, classes, title, seed)


def draw_controls(model: LatentModel, images: Tensor, title: str, seed: int = 0) -> Figure:
    """Draw one noise that flows to many images: a row for each control, which an image's code decides."""
    latents = model.encode(images)
    noise = torch.randn(1, *model.shape, generator=seeded(seed)).expand(len(images), -1, -1, -1)
    observation = model.observation
    with torch.no_grad():
        found = observation.trajectories(model.conditions(latents), noise.to(latents), TIMES)["pixels"]
    rows = [torch.cat([images[i : i + 1].cpu(), found[:, i].cpu()]) for i in range(len(images))]
    heads = ["encoded", *(f"t = {t:g}" for t in TIMES)]
    labels = [f"control {i + 1}" for i in range(len(images))]
    return labelled_rows(rows, labels, f"{title}: one noise under many controls", heads=heads)


def draw_noises(model: LatentModel, images: Tensor, title: str, seed: int = 0) -> Figure:
    """Draw what the code keeps: images, their expected image, several noises under one code, and their own noise."""
    latents = model.encode(images)
    own = model.reconstruct(images, start="inverted", evaluations=EVALUATIONS)
    columns = [images.cpu(), model.decode(latents).cpu()]
    for i in range(NOISES):
        noise = torch.randn(1, *model.shape, generator=seeded(1000 * seed + i)).expand(len(images), -1, -1, -1)
        columns.append(model.sample_images(latents, noise=noise, evaluations=EVALUATIONS).cpu())
    columns.append(own.cpu())
    rows = [torch.stack([column[i] for column in columns]) for i in range(len(images))]
    heads = ["image", "expected", *(f"noise {i + 1}" for i in range(NOISES)), "own noise"]
    labels = [f"code {i + 1}" for i in range(len(images))]
    return labelled_rows(rows, labels, f"{title}: what the code keeps, and what the noise adds", heads=heads)


def draw_labels(model: LatentModel, classes: Sequence[str], title: str, seed: int = 0) -> Figure:
    """Draw samples of each class, a row a class; a column has the same noise."""
    rows = []
    for number in range(len(classes)):
        labels = torch.full((EACH,), number)
        rows.append(model.sample(EACH, seeded(seed), labels=labels).cpu())
    return labelled_rows(rows, [name[:12] for name in classes], f"{title}: samples of each class, seed {seed}")


def full_code_interpolation(model: LatentModel, images: Tensor, start: int, end: int, points: int) -> Tensor:
    """Return the images (points, C, H, W) between two, along a line of codes and a great circle of noises.

    Args:
        model: a model with a flow of pixels.
        images: (n, C, H, W) in [0, 1].
        start: index of the first image.
        end: index of the last one.
        points: number of images.
    """
    pair = images[[start, end]]
    latents = model.encode(pair)
    noise = model.invert(pair, latents, evaluations=EVALUATIONS)
    weights = torch.linspace(0, 1, points, device=latents.device)
    codes = torch.lerp(latents[0], latents[1], weights.unsqueeze(1))
    cosine = _cosine(noise[0], noise[1]).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.arccos(cosine)
    first, second = torch.sin((1 - weights) * angle) / torch.sin(angle), torch.sin(weights * angle) / torch.sin(angle)
    between = first.view(-1, 1, 1, 1) * noise[0] + second.view(-1, 1, 1, 1) * noise[1]
    return model.sample_images(codes, noise=between, evaluations=EVALUATIONS)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of the angle between two tensors, ()."""
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0)
