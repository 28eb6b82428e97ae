"""Densities in the plane: `python eval/density.py`.

Two moons, three rings, a checkerboard and two spirals, by exact likelihood: a flow takes points to a standard normal,
and the log-density follows from its divergence. Without a label: static flows of one and of two hidden layers, and
closed algebraic loops through gains and through all weights. With the label (moon, ring, column, arm) as condition:
open loops whose control is gains and biases, or all weights, and a closed loop. All have 2,000 parameters within 5 %,
the same points, optimiser and steps, and three seeds. Training draws its time grids at random: on a fixed grid flows
learn to exploit the solver's error. Scores come from held-out points and a refined solver.

A finished cell is not run again. Writes eval/results/density.{json,md} and density.png; weights go to runs/density.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from cells import told
from contenders import fitted
from ensemble import Ensemble
from intervals import interval
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ncode_gen import NCODE
from ncode_gen.figures.style import COLOURS
from ncode_gen.runtime.files import write_atomically, write_json, write_text
from ncode_gen.solvers import random_grid

RESULTS, WEIGHTS = Path(__file__).parent / "results", Path("runs") / "density"
PARAMETERS, SEEDS, STEPS, BATCH, RATE, SOLVER_STEPS, HELD_OUT, LABELS = 2000, 3, 1200, 128, 5e-3, 6, 4000, 4


def moons(n: int) -> tuple[Tensor, Tensor]:
    """Two half circles, one inside the other's opening."""
    label, angle = torch.randint(2, (n,)), torch.pi * torch.rand(n)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.where(label.unsqueeze(1) == 0, upper, lower) + 0.08 * torch.randn(n, 2)
    return 1.3 * (points - torch.tensor([0.5, 0.25])), label


def rings(n: int) -> tuple[Tensor, Tensor]:
    """Three concentric circles."""
    label, angle = torch.randint(3, (n,)), 2 * torch.pi * torch.rand(n)
    radius = 0.5 + 0.7 * label + 0.08 * torch.randn(n)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


def checkerboard(n: int) -> tuple[Tensor, Tensor]:
    """Eight of the sixteen squares of a board of side 4; the label is the column."""
    column, row = torch.randint(4, (n,)), torch.randint(2, (n,))
    corner = torch.stack([column, 2 * row + column % 2], 1)
    return corner + torch.rand(n, 2) - 2, column


def spirals(n: int) -> tuple[Tensor, Tensor]:
    """Two arms of a spiral, one and a half turns each."""
    label, way = torch.randint(2, (n,)), torch.rand(n).sqrt()
    angle = 3 * torch.pi * way + torch.pi * label
    points = 2.2 * way.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.06 * torch.randn(n, 2), label


DENSITIES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "moons": moons,
    "rings": rings,
    "checkerboard": checkerboard,
    "spirals": spirals,
}


def flow(*hidden: int, **arguments: Any) -> NCODE:
    """Return a flow in the plane that sees a label."""
    return NCODE(2, hidden, condition=LABELS, steps=SOLVER_STEPS, **arguments)


# Name -> whether it sees the label, and how it is made from a width.
MODELS: dict[str, tuple[bool, Callable[[int], NCODE]]] = {
    "static, one hidden layer": (False, lambda w: flow(w, loop="static")),
    "static, two hidden layers": (False, lambda w: flow(w, w, loop="static")),
    "N-CODE closed, gains": (False, lambda w: flow(32, loop="closed", gamma=(w,))),
    "N-CODE closed, weights": (False, lambda w: flow(16, loop="closed", feedback="weights", gamma=(w,))),
    "open, gains": (True, lambda w: flow(64, loop="open", control="film", gamma=(w,))),
    "N-CODE open, all weights": (True, lambda w: flow(24, loop="open", gamma=(w,))),
    "N-CODE closed, gains, label": (True, lambda w: flow(16, loop="closed", gamma=(w,))),
}


class Density(nn.Module):
    """A density in the plane; called, it returns the negative log-likelihood in nats."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.labelled, make = MODELS[name]
        self.flow = fitted(make, PARAMETERS)

    def log_prob(self, x: Tensor, label: Tensor, **options: Any) -> Tensor:
        """Return log p(x) or log p(x | label) in nats, shape (n,), for points (n, 2) and labels (n,)."""
        condition = nn.functional.one_hot(label, LABELS).to(x.dtype) * float(self.labelled)
        solution = self.flow(x, condition, log_det=True, **options)
        found: Tensor = -0.5 * solution.state.square().sum(1) - math.log(2 * math.pi) + solution.log_det[-1]
        return found

    def forward(self, x: Tensor, label: Tensor, grid: Tensor) -> Tensor:
        """Return the mean negative log-likelihood, solved on a grid."""
        return -self.log_prob(x, label, grid=grid).mean()


def run(density: str, name: str) -> list[dict[str, float]]:
    """Train and score the seeds of one model; return a row for each."""
    torch._dynamo.reset()
    ensemble = Ensemble(lambda: Density(name), range(SEEDS))

    def draw() -> tuple[Tensor, ...]:
        points, labels = (part.unflatten(0, (SEEDS, BATCH)) for part in DENSITIES[density](SEEDS * BATCH))
        return points, labels, torch.stack([random_grid(SOLVER_STEPS) for _ in range(SEEDS)])

    torch.manual_seed(SEEDS)
    ensemble.train(draw, steps=STEPS, rate=RATE)
    torch.manual_seed(1000)
    points = DENSITIES[density](HELD_OUT)
    rows = []
    for seed in range(SEEDS):
        model = ensemble.model(seed)
        assert isinstance(model, Density)
        with torch.no_grad():
            coarse = -model.log_prob(*points).mean()
            refined = -model.log_prob(*points, steps=8 * SOLVER_STEPS).mean()
        rows.append({"nll": float(refined), "training_solver": float(coarse), "parameters": ensemble.parameters})
        if seed == 0:
            write_atomically(weights_of(density, name), partial(save_file, model.state_dict()))
    return rows


def read(path: Path) -> dict[str, Any]:
    """Return the cells that are filled."""
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return cells


def weights_of(density: str, name: str) -> Path:
    """Return the file of a cell's first seed."""
    return WEIGHTS / f"{density}-{name}.safetensors"


def table(cells: dict[str, Any]) -> str:
    """Return the cells as Markdown, the best of each kind in bold."""
    lines = [
        "# Densities in the plane",
        "",
        f"Exact negative log-likelihood in nats (lower is better) of {HELD_OUT} held-out points, RK4 x "
        f"{8 * SOLVER_STEPS}: mean and 95 % interval over {SEEDS} seeds; in brackets with the {SOLVER_STEPS} steps of",
        f"training. {PARAMETERS} parameters within 5 %, {STEPS} steps of Adam, batches of {BATCH}, random time grids. "
        "The best mean of each kind is in bold.",
        "The label is the moon, ring, column or arm; with it the numbers are conditional, and a kind of their own.",
        "Command: `python eval/density.py`.",
        "",
        f"| model | label | parameters | {' | '.join(DENSITIES)} |",
        f"|---|---|---:|{'---:|' * len(DENSITIES)}",
    ]
    for name, (labelled, _) in MODELS.items():
        shown, parameters = [], 0
        for density in DENSITIES:
            rows = cells.get(f"{density}/{name}")
            if rows is None:
                shown.append("-")
                continue
            parameters = rows[0]["parameters"]
            mean, half = interval(rows, "nll")
            rivals = [f"{density}/{other}" for other, (sees, _) in MODELS.items() if sees == labelled]
            best = min(interval(cells[key], "nll")[0] for key in rivals if key in cells)
            text = f"{mean:.3f} ± {half:.3f}"
            text = f"**{text}**" if mean == best else text
            shown.append(f"{text} ({interval(rows, 'training_solver')[0]:.3f})")
        lines.append(f"| {name} | {'yes' if labelled else 'no'} | {parameters} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def load(density: str, name: str) -> Density | None:
    """Return the model of a cell's first seed, if its weights are there."""
    if not weights_of(density, name).exists():
        return None
    model = Density(name)
    model.load_state_dict(load_file(weights_of(density, name)))
    return model


@torch.no_grad()
def draw(path: Path) -> None:
    """Draw points, densities of the flows without a label, and paths from the normal to samples."""
    names = [name for name, (labelled, _) in MODELS.items() if not labelled]
    figure, axes = plt.subplots(len(DENSITIES), len(names) + 2, figsize=(11.5, 8), layout="constrained")
    side = 140
    ticks = torch.linspace(-2.8, 2.8, side)
    grid = torch.cartesian_prod(ticks, ticks)
    for row, (density, points) in zip(axes, DENSITIES.items(), strict=True):
        torch.manual_seed(0)
        x, _ = points(3000)
        row[0].scatter(*x.T, s=0.6, color=COLOURS[6], alpha=0.5)
        row[0].set_ylabel(density)
        models = [load(density, name) for name in names]
        for axis, model in zip(row[1:-1], models, strict=True):
            if model is not None:
                p = model.log_prob(grid, torch.zeros(len(grid), dtype=torch.long), steps=8 * SOLVER_STEPS).exp()
                axis.imshow(p.view(side, side).T, origin="lower", extent=(-2.8, 2.8, -2.8, 2.8), cmap="magma", vmax=0.5)
        if (model := models[names.index("N-CODE closed, weights")]) is not None:
            start = torch.randn(120, 2)
            back = model.flow(start, torch.zeros(120, LABELS), times=torch.linspace(1, 0, 33)).parts[0]
            for i in range(len(start)):
                row[-1].plot(*back[:, i].T, color=COLOURS[0], lw=0.4, alpha=0.5)
            row[-1].scatter(*back[-1].T, s=2, color=COLOURS[1], zorder=3)
        for axis in row:
            axis.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), xticks=[], yticks=[], aspect="equal")
    for axis, title in zip(axes[0], ["points", *names, "paths, closed, weights"], strict=True):
        axis.set_title(title, fontsize=8)
    write_atomically(path, lambda file: figure.savefig(file, dpi=130, format="png"))
    plt.close(figure)


def main() -> None:
    """Fill the table, cell by cell, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), help="rows of the table, all if none is named")
    options = parser.parse_args()
    path = RESULTS / "density.json"
    missing = {
        f"{density}, {name}": (density, name)
        for name in options.models
        for density in DENSITIES
        if f"{density}/{name}" not in read(path) or not weights_of(density, name).exists()
    }
    for density, name in told(missing):
        rows = run(density, name)
        cells = {**read(path), f"{density}/{name}": rows}  # another process may have filled other rows
        write_json(path, cells)
        write_text(path.with_suffix(".md"), table(cells))
    draw(path.with_suffix(".png"))
    print(table(read(path)))


if __name__ == "__main__":
    main()
