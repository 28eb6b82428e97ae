"""The table and the contact sheets of `eval/generation.py`."""

from __future__ import annotations

from pathlib import Path

from generation_cells import Cell, Cells, Key, collected, entry
from generation_pairs import pairs_table
from intervals import interval
from PIL import Image
from torch import Tensor

from ncode_gen.data.pictures import tiled, to_bytes

COLUMNS = (
    ("fid", "FID", 2),
    ("kid", "KID", 0),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("density", "density", 3),
    ("coverage", "coverage", 3),
    ("nll_nats", "NLL", 2),
    ("elbo_nats", "ELBO", 2),
    ("reconstruction_fid", "FID of copies", 2),
    ("mse", "MSE of copies", 5),
    ("distortion_nats", "distortion", 2),
    ("probe", "probe", 3),
    ("interpolation", "way", 2),
)
NFE = {
    "fid_by_nfe": "the flow prior's field (Runge-Kutta 4)",
    "fid_by_refiner_nfe": "the refiner's U-net, 0 without it",
}
MARK = "† made before cells recorded their commit"
SHORT = ("fid", "kid", "recall", "coverage", "nll_nats", "elbo_nats", "reconstruction_fid")


def contact_sheet(images: Tensor, path: Path, columns: int = 10) -> None:
    """Write images (n, C, H, W) in [0, 1] as one PNG, side by side."""
    sheet = Image.fromarray(tiled(to_bytes(images), columns, 0, 0).permute(1, 2, 0).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    (sheet.convert("L") if images.shape[1] == 1 else sheet).save(path)


def _row(names: Key, group: list[Cell]) -> str:
    """Return the first columns of a row: model, latent dimensions and prior."""
    model, dim, _, prior = names
    mark = "" if all("commit" in cell for cell in group) else " †"
    size = f" ({group[0]['components']})" if "components" in group[0] else ""
    return f"| {model}{mark} | {dim or '-'} | {prior}{size} |"


def _time(cell: Cell) -> str:
    """Return the seconds of training, and the device if it was no CPU."""
    if "training_seconds" not in cell:
        return "-"
    device = cell.get("device", "cpu")
    return f"{cell['training_seconds']:.0f}" + (f" ({device})" if device != "cpu" else "")


def _learnt(cell: Cell) -> str:
    """Return how many images the models learned from, where a cell says it."""
    return f", {cell['training_images']} training images" if "training_images" in cell else ""


def short_table(data: str, folder: Path) -> str:
    """Return the columns that README shows."""
    cells = collected(folder)
    some = next(iter(cells.values()))[0]
    columns = [column for column in COLUMNS if column[0] in SHORT]
    lines = [
        f"**{data}, all models in one harness** (`python eval/generation.py {data}`{_learnt(some)}; "
        f"FID and KID[{some['features']}, n={some['samples']}, test]; 95 % intervals; {MARK}; the full table is in "
        f"`eval/results/generation-{data}.md`):",
        "",
        "| model | d | prior | " + " | ".join(title for _, title, _ in columns) + " | epochs |",
        "|---|---:|---|" + "---:|" * (len(columns) + 1),
    ]
    for names, group in _best_first(cells):
        entries = [entry(group, key, digits) for key, _, digits in columns]
        entries.append(str(group[0].get("epochs", "-")))
        lines.append(f"{_row(names, group)} {' | '.join(entries)} |")
    return "\n".join(lines)


def _best_first(cells: Cells) -> list[tuple[Key, list[Cell]]]:
    """Return the cells in the order of their mean FID."""
    return sorted(cells.items(), key=lambda item: sum(c["scores"]["fid"]["value"] for c in item[1]) / len(item[1]))


def _by_evaluations(cells: Cells, key: str, what: str) -> list[str]:
    """Return the lines of a table of scores by evaluations of a field, of seed 0."""
    groups = [(names, group[0][key]) for names, group in cells.items() if key in group[0]]
    if not groups:
        return []
    counts = sorted({count for _, found in groups for count in found}, key=int)
    lines = ["", f"FID by evaluations of {what}, seed 0:", ""]
    lines += ["| model | d | prior | " + " | ".join(counts) + " |", "|---|---:|---|" + "---:|" * len(counts)]
    for (model, dim, _, prior), found in groups:
        scores = [f"{found[count]:.2f}" if count in found else "-" for count in counts]
        lines.append(f"| {model} | {dim} | {prior} | {' | '.join(scores)} |")
    return lines


def _matching(cells: Cells) -> list[str]:
    """Return the lines of a table of refiners by what their flow matching left over."""
    groups = [(names, group) for names, group in cells.items() if all("matching" in cell for cell in group)]
    if not groups:
        return []
    lines = ["", "Flow matching of the refiners: mean square error on validation images, 1 for one that knows nothing:"]
    lines += ["", "| model | d | epochs | seeds | error |", "|---|---:|---:|---:|---:|"]
    for (model, dim, epochs, _), group in groups:
        values = [cell["matching"] for cell in group]
        half = f" ± {interval(group, 'matching')[1]:.4f}" if len(group) > 1 else ""
        lines.append(f"| {model} | {dim} | {epochs} | {len(group)} | {sum(values) / len(values):.4f}{half} |")
    return lines


def table(data: str, folder: Path) -> str:
    """Return all finished cells of an image set as Markdown, the lowest FID first."""
    cells = collected(folder)
    if not cells:
        return f"# {data}\n\nNo cell is finished.\n"
    some = next(iter(cells.values()))[0]
    lines = [
        f"# Generation: {data}",
        "",
        f"FID and KID[{some['features']}, n={some['samples']}, test], {some['test_images']} test images"
        f"{_learnt(some)}; encode images as they are, decode means. One seed: 95 % interval of the samples; "
        "several: 95 % interval of the mean over seeds. NLL and ELBO in nats, refined solver. "
        '"way": length of the decoded line between two images over the straight one, in feature space. "probe": '
        'accuracy of a logistic regression on the latents. "distortion": -log p(u | z) in nats of targets as in '
        "training, where FID and MSE of copies are those of the images' own codes. Times of seed 0, on one or two "
        f"threads of a CPU or on the device that they name, with other jobs beside. {MARK}.",
        "",
        "| model | d | prior | seeds | "
        + " | ".join(title for _, title, _ in COLUMNS)
        + " | parameters | epochs | s |",
        "|---|---:|---|---:|" + "---:|" * (len(COLUMNS) + 3),
    ]
    for names, group in _best_first(cells):
        first = group[0]
        entries = [entry(group, key, digits) for key, _, digits in COLUMNS]
        entries += [str(first.get(key, "-")) for key in ("parameters", "epochs")]
        entries.append(_time(first))
        lines.append(f"{_row(names, group)} {len(group)} | {' | '.join(entries)} |")
    for key, what in NFE.items():
        lines += _by_evaluations(cells, key, what)
    lines += pairs_table(cells)
    lines += _matching(cells)
    particles = sorted({cell["particles"] for group in cells.values() for cell in group if "particles" in cell})
    if particles:
        lines += ["", f"Particles of the likelihoods: {', '.join(map(str, particles))}."]
    return "\n".join(lines) + "\n"
