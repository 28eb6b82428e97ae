"""What a single flow cannot express and a controlled one can: `python eval/expressivity.py`.

Tasks: the mirror (x1 -> -x1) in 1, 2 and 8 dimensions, which turns orientation round, so that no flow in x is it; the
point reflection x -> -x in 2 and 8 dimensions, which a rotation is; concentric annuli in 2, to be separated by a linear
read-out of the last state. Every model has the same number of parameters within 5 %, the same optimiser, steps and
batches, and ten seeds. A network gamma alone, of the same size, stands beside the controlled flows, since in open loop
gamma sees x(0). A closed algebraic loop without a condition is still a flow in x and has to fail the mirror.

The seeds of a cell are trained together (see eval/ensemble.py). A finished cell of the table is not run again. Writes
eval/results/expressivity.{json,md} and expressivity-{mirror,annuli}.png; the weights of seed 0, from which the pictures
are drawn, go to runs/expressivity.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from cells import told
from contenders import Flow, GammaAlone, fitted
from ensemble import Ensemble
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ncode_gen.figures.style import COLOURS
from ncode_gen.runtime.files import write_atomically, write_json, write_text

RESULTS = Path(__file__).parent / "results"
WEIGHTS = Path("runs") / "expressivity"
PARAMETERS, SEEDS, BATCH, HELD_OUT = 2000, 10, 128, 4096
SOLVER_STEPS = 8


@dataclass(frozen=True)
class Task:
    """A map to be learned: states (n, d) and what they are to become, (n, d), or their class, (n, 1)."""

    name: str
    dim: int
    draw: Callable[[int], tuple[Tensor, Tensor]]
    classes: bool = False
    steps: int = 1500
    rate: float = 1e-2


def mirror(dim: int, coordinates: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a sampler of points in [-2, 2]^dim and their images with the first coordinates turned round."""

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = 4 * torch.rand(n, dim) - 2
        sign = torch.ones(dim)
        sign[:coordinates] = -1
        return x, sign * x

    return draw


def annuli(n: int) -> tuple[Tensor, Tensor]:
    """Draw points of a disc of radius 0.5 (class 0) and of a ring from 1 to 1.5 around it (class 1)."""
    label = torch.arange(n) % 2
    share, angle = torch.rand(n), 2 * torch.pi * torch.rand(n)
    radius = torch.where(label == 0, 0.5 * share.sqrt(), (1 + 1.25 * share).sqrt())
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label.unsqueeze(1).float()


TASKS = [
    Task("mirror 1-D", 1, mirror(1, 1)),
    Task("mirror 2-D", 2, mirror(2, 1)),
    Task("mirror 8-D", 8, mirror(8, 1)),
    Task("point reflection 2-D", 2, mirror(2, 2)),
    Task("point reflection 8-D", 8, mirror(8, 8), steps=4000),
    Task("annuli 2-D", 2, annuli, classes=True, steps=3000, rate=3e-3),
]


MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "NODE": lambda d, w: Flow(d, w, w, steps=SOLVER_STEPS, loop="static"),
    "ANODE": lambda d, w: Flow(d, w, w, steps=SOLVER_STEPS, loop="static", augment=5),
    "gamma alone": GammaAlone,
    "N-CODE open": lambda d, w: Flow(d, 8, steps=SOLVER_STEPS, loop="open", gamma=(w,)),
    "N-CODE closed, dynamic": lambda d, w: Flow(
        d, 6, steps=SOLVER_STEPS, loop="closed", feedback="dynamic", gamma=(w,), dynamics_rank=4
    ),
    "N-CODE closed, algebraic": lambda d, w: Flow(
        d, 8, steps=SOLVER_STEPS, loop="closed", feedback="weights", gamma=(w,)
    ),
    "closed, algebraic, no condition": lambda d, w: Flow(
        d, 8, steps=SOLVER_STEPS, loop="closed", feedback="weights", gamma=(w,), blind=True
    ),
}


class Learner(nn.Module):
    """A model with a linear read-out, where the task has classes; called, it returns the loss."""

    def __init__(self, task: Task, name: str) -> None:
        super().__init__()
        self.model = fitted(lambda width: MODELS[name](task.dim, width), PARAMETERS)
        self.classes = task.classes
        self.read_out = nn.Linear(task.dim, 1) if task.classes else nn.Identity()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss."""
        found = self.read_out(self.model(x))
        if self.classes:
            return nn.functional.binary_cross_entropy_with_logits(found, y)
        error: Tensor = (found - y).square().mean()
        return error

    @torch.no_grad()
    def score(self, task: Task) -> dict[str, float]:
        """Return the score on held-out points, and the mean evaluations of a per-sample dopri5 at 1e-3."""
        x, y = task.draw(HELD_OUT)
        found = self.read_out(self.model(x))
        if self.classes:
            scores = {"accuracy": float(((found > 0) == (y > 0.5)).float().mean())}
        else:
            scores = {"mse": float((found - y).square().mean())}
        if isinstance(self.model, Flow):
            scores["nfe"] = self.model.evaluations(x)
        return scores


def table(cells: dict[str, Any]) -> str:
    """Return the cells as a Markdown table: worst, median and best seed."""
    lines = [
        "# Expressivity",
        "",
        f"{SEEDS} seeds, batches of {BATCH}, {PARAMETERS} parameters within 5 %, RK4 x {SOLVER_STEPS} in training and "
        f"in scoring; {HELD_OUT} held-out points. Adam, steps at "
        f"rate: {', '.join(f'{task.name} {task.steps} at {task.rate:g}' for task in TASKS)}.",
        "Mean square error of a map (lower is better), accuracy of the annuli (higher is better): median (worst seed).",
        "Passed: seeds with an error below 1e-3, or an accuracy of at least 99.5 %. NFE: mean evaluations of a point, ",
        "per-sample dopri5 at 1e-3. Command: `python eval/expressivity.py`.",
        "",
        "| task | model | parameters | median (worst) | passed | NFE |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task in TASKS:
        for name in MODELS:
            seeds = [cells[key] for seed in range(SEEDS) if (key := f"{task.name}/{name}/{seed}") in cells]
            if not seeds:
                continue
            values = sorted((row["accuracy"] if task.classes else row["mse"] for row in seeds), reverse=task.classes)
            good = sum(value >= 0.995 if task.classes else value < 1e-3 for value in values)
            shown = "{:.2%} ({:.2%})" if task.classes else "{:.2g} ({:.2g})"
            median = shown.format(values[len(values) // 2], values[-1])
            nfe = f"{sum(row['nfe'] for row in seeds) / len(seeds):.0f}" if "nfe" in seeds[0] else "-"
            lines.append(
                f"| {task.name} | {name} | {seeds[0]['parameters']} | {median} | {good}/{len(seeds)} | {nfe} |"
            )
    return "\n".join(lines) + "\n"


def save(path: Path, learner: Learner) -> None:
    """Write weights, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(learner.state_dict(), partial))


def run(task: Task, name: str) -> dict[str, dict[str, float]]:
    """Train and score a cell of the table, all seeds; return a row for each."""
    torch._dynamo.reset()
    ensemble = Ensemble(lambda: Learner(task, name), range(SEEDS))

    def draw() -> tuple[Tensor, ...]:
        return tuple(part.view(SEEDS, BATCH, -1) for part in task.draw(SEEDS * BATCH))

    torch.manual_seed(SEEDS)
    ensemble.train(draw, steps=task.steps, rate=task.rate)
    rows = {}
    for seed in range(SEEDS):
        learner = ensemble.model(seed)
        assert isinstance(learner, Learner)
        if seed == 0:
            save(WEIGHTS / f"{task.name}-{name}.safetensors", learner)
        torch.manual_seed(1000 + seed)
        rows[f"{task.name}/{name}/{seed}"] = {"parameters": ensemble.parameters, **learner.score(task)}
    return rows


@torch.no_grad()
def draw(task: Task, path: Path) -> None:
    """Draw the paths of seed 0: over time in one dimension, in the plane in two; dots are the last states."""
    figure, axes = plt.subplots(1, len(MODELS), figsize=(14, 2.5), layout="constrained", sharey=task.dim == 1)
    torch.manual_seed(0)
    x, _ = task.draw(160)
    if task.dim == 1:
        x = torch.linspace(-2, 2, 17).unsqueeze(1)
    labels = x[:, 0] > 0 if task.dim == 1 else x.norm(dim=1) > 0.75
    times = torch.linspace(0, 1, 33)
    for axis, name in zip(axes, MODELS, strict=True):
        learner = Learner(task, name)
        learner.load_state_dict(load_file(WEIGHTS / f"{task.name}-{name}.safetensors"))
        last = learner.model(x)
        moved = learner.model.path(x, times) if isinstance(learner.model, Flow) else torch.stack([x, last])
        for points, label in zip(moved.unbind(1), labels, strict=True):
            colour = COLOURS[int(label)]
            if task.dim == 1:
                axis.plot(times if len(moved) > 2 else [0, 1], points[:, 0], color=colour, lw=0.9)
            else:
                axis.plot(*points.T, color=colour, lw=0.4, alpha=0.5)
                axis.plot(*points[-1], ".", color=colour, ms=3)
        axis.set_title(name, fontsize=8)
        if task.dim == 1:
            axis.set_xlabel("t")
        else:  # the classes are driven far apart; inside of the ring the scale is linear
            axis.set_xscale("symlog", linthresh=1.5)
            axis.set_yscale("symlog", linthresh=1.5)
            axis.set(xlim=(-150, 150), ylim=(-150, 150), xticks=[-100, -1, 1, 100], yticks=[-100, -1, 1, 100])
            axis.minorticks_off()
            axis.plot(*x.T, ".", color="#bbbbbb", ms=1.5, zorder=0)
    axes[0].set_ylabel("x(t)" if task.dim == 1 else "")
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=130, format="png"))
    plt.close(figure)


def main() -> None:
    """Fill the table, cell by cell, and draw."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    path = RESULTS / "expressivity.json"
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    missing = {
        f"{task.name}, {name}": (task, name)
        for task in TASKS
        for name in MODELS
        if f"{task.name}/{name}/{SEEDS - 1}" not in cells or not (WEIGHTS / f"{task.name}-{name}.safetensors").exists()
    }
    for task, name in told(missing):
        cells.update(run(task, name))
        write_json(path, cells)
        write_text(RESULTS / "expressivity.md", table(cells))
    for task in (TASKS[0], TASKS[-1]):
        draw(task, RESULTS / f"expressivity-{task.name.split()[0]}.png")
    print(table(cells))


if __name__ == "__main__":
    main()
