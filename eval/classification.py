"""Supervised learning: `python eval/classification.py [digits mnist fashion-mnist] [--data FOLDER]`.

Images are projected linearly to x(0) in 8 dimensions, mapped to x(1), and read out linearly. All models have the same
projection and read-out and, within 5 %, the same number of parameters in between; every control is made from x(0)
alone. They share batches, optimiser and steps, and have five seeds. The 10,000 test images (270 of digits) are scored
once, at the end. A trained model is scored again with another solver and with half and double the steps.

A finished cell is not run again. Writes eval/results/classification.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import matplotlib.pyplot as plt
import torch
from cells import told
from contenders import Flow, GammaAlone, ResidualNet, fitted
from ensemble import Ensemble
from intervals import interval
from torch import Tensor, nn

from ncode_gen.config import section
from ncode_gen.data.images import TensorImages
from ncode_gen.data.sets import load_data
from ncode_gen.runtime.files import write_atomically, write_json, write_text

RESULTS = Path(__file__).parent / "results"
DIM, PARAMETERS, SEEDS, BATCH, RATE, SOLVER_STEPS = 8, 6000, 5, 256, 5e-3, 4
STEPS = {"digits": 1000, "mnist": 4700, "fashion-mnist": 4700}
SOLVES: dict[str, dict[str, Any]] = {
    "dopri5": {"method": "dopri5", "rtol": 1e-4, "atol": 1e-4},
    "half": {"steps": SOLVER_STEPS // 2},
    "double": {"steps": SOLVER_STEPS * 2},
}

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "NODE": lambda w: Flow(DIM, w, w, steps=SOLVER_STEPS, loop="static"),
    "ANODE": lambda w: Flow(DIM, w, w, steps=SOLVER_STEPS, loop="static", augment=DIM),
    "residual net": lambda w: ResidualNet(DIM, w),
    "gamma alone": lambda w: GammaAlone(DIM, w),
    "N-CODE open": lambda w: Flow(DIM, 8, steps=SOLVER_STEPS, loop="open", gamma=(w,)),
    "N-CODE closed": lambda w: Flow(DIM, 8, steps=SOLVER_STEPS, loop="closed", feedback="weights", gamma=(w,)),
}


class Classifier(nn.Module):
    """A linear projection, a model, a linear read-out; called, it returns the cross-entropy in nats."""

    def __init__(self, pixels: int, name: str) -> None:
        super().__init__()
        self.model = fitted(MODELS[name], PARAMETERS)
        self.project, self.read_out = nn.Linear(pixels, DIM), nn.Linear(DIM, 10)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of images (n, pixels) in [0, 1] with labels (n,)."""
        return nn.functional.cross_entropy(self.read_out(self.model(self.project(images))), labels)

    @torch.no_grad()
    def accuracy(self, images: Tensor, labels: Tensor, **options: Any) -> float:
        """Return the share of images that are classified rightly, in a solve with options."""
        hits = 0
        for some, wanted in zip(images.split(2000), labels.split(2000), strict=True):
            x = self.project(some)
            found = self.read_out(self.model(x, **options) if options else self.model(x)).argmax(1)
            hits += int((found == wanted).sum())
        return hits / len(labels)


def run(data: dict[str, tuple[Tensor, Tensor]], name: str, steps: int) -> list[dict[str, float]]:
    """Train and score the seeds of one model; return a row for each."""
    images, labels = data["train"]
    torch._dynamo.reset()
    ensemble = Ensemble(lambda: Classifier(images.shape[1], name), range(SEEDS))
    orders: list[Tensor] = []

    def draw() -> tuple[Tensor, ...]:
        if not orders:  # each seed goes through the images in an order of its own
            epoch = torch.stack([torch.randperm(len(labels)) for _ in range(SEEDS)])
            orders.extend(reversed([rows for rows in epoch.split(BATCH, 1) if rows.shape[1] == BATCH]))
        rows = orders.pop()
        return images[rows], labels[rows]

    ensemble.losses(draw()).sum().backward()  # pays the compiler, so that the time is that of training
    torch.manual_seed(SEEDS)
    orders.clear()
    start = time.perf_counter()
    ensemble.train(draw, steps=steps, rate=RATE)
    seconds = (time.perf_counter() - start) / SEEDS
    rows = []
    for index in range(SEEDS):
        model = ensemble.model(index)
        assert isinstance(model, Classifier)
        start = time.perf_counter()
        row = {"accuracy": model.accuracy(*data["test"]), "parameters": float(ensemble.parameters), "train_s": seconds}
        row["test_s"] = time.perf_counter() - start
        if isinstance(model.model, Flow):
            row["nfe"] = model.model.evaluations(model.project(data["test"][0][:1000]))
            row.update({solve: model.accuracy(*data["test"], **options) for solve, options in SOLVES.items()})
        rows.append(row)
    return rows


def table(cells: dict[str, Any]) -> str:
    """Return the cells as Markdown."""
    lines = [
        "# Classification",
        "",
        f"Linear projection to {DIM} dimensions, model, linear read-out. {SEEDS} seeds, Adam ({RATE:g}, one cycle), "
        f"batches of {BATCH}, {STEPS['mnist']} steps ({STEPS['digits']} on digits), RK4 x {SOLVER_STEPS} in training.",
        f"All models but for projection and read-out: {PARAMETERS} parameters within 5 %. Accuracy on the test images "
        "in %, mean and 95 % interval over the seeds; the same weights solved by dopri5 (1e-4), and by RK4 with half "
        "and double the steps. NFE: mean evaluations of an image, per-sample dopri5 at 1e-3. Seconds of one seed, the "
        "seeds trained together on one core. Command: `python eval/classification.py`.",
        "",
        "| data | model | parameters | accuracy | dopri5 | half | double | NFE | train, s | test, s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for data in STEPS:
        for name in MODELS:
            rows = cells.get(f"{data}/{name}")
            if rows is None:
                continue
            mean, half = interval(rows, "accuracy")
            solved = [f"{100 * interval(rows, key)[0]:.2f}" if key in rows[0] else "-" for key in SOLVES]
            nfe = f"{interval(rows, 'nfe')[0]:.0f}" if "nfe" in rows[0] else "-"
            lines.append(
                f"| {data} | {name} | {rows[0]['parameters']:.0f} | {100 * mean:.2f} ± {100 * half:.2f} | "
                f"{' | '.join(solved)} | {nfe} | {interval(rows, 'train_s')[0]:.1f} | "
                f"{interval(rows, 'test_s')[0]:.2f} |"
            )
    return "\n".join(lines) + "\n"


def draw(cells: dict[str, Any], path: Path) -> None:
    """Draw means and intervals, one panel a data set."""
    figure, axes = plt.subplots(1, len(STEPS), figsize=(11, 3), layout="constrained")
    for axis, data in zip(axes, STEPS, strict=True):
        names = [name for name in MODELS if f"{data}/{name}" in cells]
        found = [interval(cells[f"{data}/{name}"], "accuracy") for name in names]
        colours = ["#1b6ca8" if name.startswith("N-CODE") else "#8a8a8a" for name in names]
        for i, ((mean, half), colour) in enumerate(zip(found, colours, strict=True)):
            axis.errorbar(100 * mean, i, xerr=100 * half, fmt="o", color=colour, capsize=3)
        axis.set(yticks=range(len(names)), yticklabels=names if axis is axes[0] else [], title=data)
        axis.set_xlabel("test accuracy, %")
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=130, format="png"))
    plt.close(figure)


def load(name: str, root: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Return training and test images as rows, with labels."""
    splits = load_data(section("data", name=cast(Any, name), root=root))
    parts = {}
    for part, images in (("train", splits.train), ("test", splits.test)):
        assert isinstance(images, TensorImages) and images.labels is not None
        parts[part] = (images.pixels.float().flatten(1) / 255, images.labels.long())
    return parts


def main() -> None:
    """Fill the table, cell by cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(STEPS), help="data sets")
    parser.add_argument("--data", default="data", help="folder of the data sets")
    options = parser.parse_args()
    path = RESULTS / "classification.json"
    cells: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.sets:
        missing = [model for model in MODELS if f"{name}/{model}" not in cells]
        if not missing:
            continue
        data = load(name, options.data)
        for model in told({f"{name}, {model}": model for model in missing}):
            cells[f"{name}/{model}"] = run(data, model, STEPS[name])
            write_json(path, cells)
            write_text(path.with_suffix(".md"), table(cells))
            draw(cells, path.with_suffix(".png"))
    print(table(cells))


if __name__ == "__main__":
    main()
