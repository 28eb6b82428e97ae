"""Latent paths with the vector field that each sample's own control makes, and the pictures along them."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from ..control import ControlledODE, FlowSolution
from ..data.pictures import picture_grid
from ..distributions import LatentModel
from ..runtime.files import write_atomically
from .grids import labelled_rows
from .style import COLOURS, new_figure, show_picture

FRAMES = 33
SAMPLES = 24
ARROWS = 13


def principal_plane(latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (d,), the first two principal directions (2, d) and their shares of the variance (2,)."""
    values = latents.double()
    centre = values.mean(0)
    _, strengths, directions = torch.linalg.svd(values - centre, full_matrices=False)
    shares = strengths**2 / (strengths**2).sum().clamp_min(1e-12)
    if directions.shape[0] < 2:
        directions = torch.cat([directions, torch.zeros_like(directions[:1])])
        shares = torch.cat([shares, torch.zeros_like(shares[:1])])
    return centre.float(), directions[:2].float(), shares[:2].float()


class _Plane:
    """The principal plane of latents (m, d)."""

    def __init__(self, latents: Tensor) -> None:
        self.centre, self.directions, self.shares = principal_plane(latents)

    def project(self, points: Tensor) -> Tensor:
        """Return the coordinates (..., 2), on the CPU, of points (..., d)."""
        return ((points - self.centre) @ self.directions.T).cpu()


def draw_paths(model: LatentModel, images: Tensor, context: Tensor, title: str) -> Figure | None:
    """Draw the latent paths of `images`, one panel for all and one for each over its own vector field.

    Args:
        model: a model with a flow.
        images: (n, C, H, W) in [0, 1], n >= 1.
        context: images whose latents span the principal plane.
        title: heading.

    Returns:
        The figure; None for a model without a flow.
    """
    flow = model.posterior.flow
    if flow is None:
        return None
    trajectory = model.trajectory(images, torch.linspace(0, 1, FRAMES))
    features = model.features(images.to(model.device))
    samples, latents = _samples(model, features), model.encode(context)
    plane = _Plane(latents)
    columns = 1 + len(images)
    rows = 2 if columns > 4 else 1
    figure, grid = new_figure(rows, -(-columns // rows), 1.9)
    axes = [spot for line in grid for spot in line]
    for spot in axes[columns:]:
        spot.set_visible(False)

    everywhere = plane.project(latents)
    axes[0].scatter(everywhere[:, 0], everywhere[:, 1], s=2, color="#BBBBBB", linewidths=0, label="latents")
    axes[0].set_title("all paths")
    for i, spot in enumerate(axes[1:columns]):
        colour, line = COLOURS[i % len(COLOURS)], plane.project(trajectory.states[:, i])
        for place in (axes[0], spot):
            place.plot(line[:, 0], line[:, 1], color=colour, lw=1.4)
            place.plot(line[-1, 0], line[-1, 1], "o", color=colour, ms=3)
        extent = line
        if samples is not None:
            paths = plane.project(samples[:, i])
            spot.plot(paths[..., 0], paths[..., 1], color=colour, lw=0.4, alpha=0.6)
            spot.scatter(paths[-1, :, 0], paths[-1, :, 1], s=3, color=colour, linewidths=0)
            extent = torch.cat([paths.flatten(0, 1), line])
        _draw_field(spot, flow, plane, trajectory, features, i, extent)
        spot.set_title(f"sample {i + 1}", color=colour)
        show_picture(spot.inset_axes((0.0, 0.76, 0.24, 0.24)), images[i])
    axes[0].set_xlabel(f"PC 1 ({100 * plane.shares[0]:.0f} % of variance)")
    axes[0].set_ylabel(f"PC 2 ({100 * plane.shares[1]:.0f} %)")
    for spot in axes[:columns]:
        spot.set_xticks([])
        spot.set_yticks([])
    figure.suptitle(f"{title}: latent paths x(t), dot at t = 1; arrows: each sample's own field at t = 0.5", fontsize=9)
    return figure


def _draw_field(
    spot: Axes, flow: ControlledODE, plane: _Plane, path: FlowSolution, features: Tensor, i: int, extent: Tensor
) -> None:
    """Draw arrows of sample i's vector field, half-way along its path, around the projected points of `extent`."""
    middle, half = _square(extent)
    steps = torch.linspace(-1, 1, ARROWS) * half
    where = middle + torch.cartesian_prod(steps, steps)
    inside = path.states[FRAMES // 2, i]
    # The plane through the middle of the sample's own path: other directions stay where the sample is.
    shift = where.to(inside) - plane.project(inside).to(inside)
    points = (inside + shift @ plane.directions).unsqueeze(0)
    if flow.augment:  # the extra dimensions stay where they are, too
        extra = path.augmented[FRAMES // 2, i, flow.dim :].expand(*points.shape[:2], -1)
        points = torch.cat([points, extra], -1)
    control = None if path.control is None else path.control[FRAMES // 2, i : i + 1]
    velocity = flow.velocity(0.5, points, features[i : i + 1], control)[0]
    arrows = (velocity[:, : flow.dim] @ plane.directions.T).cpu()
    # A field at rest has no longest arrow to scale by.
    scale = (float(arrows.norm(dim=1).max()) or 1.0) * ARROWS / 1.5
    spot.quiver(*where.T, *arrows.T, scale=scale, color="#888888", width=0.004, zorder=0)


def _samples(model: LatentModel, features: Tensor) -> Tensor | None:
    """Return the paths of some posterior samples, (T, n, K, d); None if the posterior is not random."""
    if model.posterior.deterministic:
        return None
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, SAMPLES, model.dim, generator=generator).to(features.device)
    with torch.no_grad():
        noise = noise.expand(len(features), -1, -1)
        path = model.posterior.trajectory(features, torch.linspace(0, 1, FRAMES, device=features.device), noise)
    return None if path is None else path.states


def _square(points: Tensor) -> tuple[Tensor, float]:
    """Return the centre (2,) and half the side of a square around points (m, 2), with a margin."""
    low, high = points.min(0).values, points.max(0).values
    return (low + high) / 2, 0.6 * max(float((high - low).max()), 1e-3)


def draw_film_strip(model: LatentModel, images: Tensor, title: str, frames: int = 9) -> Figure:
    """Draw the decoded states along t, a row for each image, its original before it."""
    times = torch.linspace(0, 1, frames)
    pictures = model.trajectory(images, times, decode=True).images
    assert pictures is not None
    return _strips(images, pictures, times, f"{title}: decoded x(t) along t")


def draw_image_trajectories(model: LatentModel, images: Tensor, title: str, frames: int = 9) -> dict[str, Figure]:
    """Draw how images arise along the flows of the observation, a row for each image; none without such a flow."""
    times = torch.linspace(0, 1, frames)
    found = model.image_trajectories(model.encode(images), times, torch.Generator().manual_seed(0))
    return {
        f"{name}-trajectory": _strips(images, path, times, f"{title}: the {name}'s flow along t")
        for name, path in found.items()
    }


def _strips(images: Tensor, pictures: Tensor, times: Tensor, title: str) -> Figure:
    """Draw pictures (T, n, C, H, W) with a row for each image, its original before it."""
    rows = [torch.cat([images[i : i + 1].cpu(), pictures[:, i].cpu()]) for i in range(len(images))]
    heads = ["original", *(f"t = {t:.2f}" for t in times)]
    return labelled_rows(rows, [f"sample {i + 1}" for i in range(len(images))], title, heads=heads)


def save_animation(model: LatentModel, images: Tensor, path: Path) -> Path:
    """Write the decoded states along t as an animated GIF, a bar below showing the time."""
    times = torch.linspace(0, 1, FRAMES)
    pictures = model.trajectory(images, times, decode=True).images
    assert pictures is not None
    frames = []
    for t, shown in zip(times.tolist(), pictures, strict=True):
        grid = picture_grid(shown)
        frame = Image.new("RGB", (grid.width, grid.height + 8), "white")
        frame.paste(grid)
        ImageDraw.Draw(frame).rectangle((4, grid.height, 4 + t * (grid.width - 8), grid.height + 4), fill=COLOURS[0])
        frames.append(frame)
    durations = [60] * (FRAMES - 1) + [1200]
    write_atomically(
        path,
        lambda partial: frames[0].save(
            partial, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        ),
    )
    return path
