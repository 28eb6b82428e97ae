"""README's picture, from the published models: `python eval/showcase.py`.

Test images beside the first samples of seed 0, none chosen. Writes eval/results/showcase.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch

import ncode_gen
from ncode_gen.data.sets import load_data
from ncode_gen.figures.grids import labelled_rows
from ncode_gen.figures.style import STYLE, save
from ncode_gen.runfolder.run import load_recipe

ROOT = Path(__file__).parent.parent
SHOWN = ("mnist-ncode-refined-long", "fashion-mnist-ncode-refined")
COLUMNS, ROWS = 20, 2


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="folder of the image sets")
    root = parser.parse_args().root
    rows, labels = [], []
    for name in SHOWN:
        folder = ROOT / "checkpoints" / name
        recipe = load_recipe(folder)
        test = load_data(recipe.data.at(root)).test.first(COLUMNS)
        samples = ncode_gen.load(str(folder)).sample(ROWS * COLUMNS, torch.Generator().manual_seed(0))
        rows += [test, *samples.split(COLUMNS)]
        labels += ["test image", *["N-CODE"] * ROWS]
    with mpl.rc_context(STYLE):
        figure = labelled_rows(rows, labels, "Test images, and samples of the published N-CODE autoencoders", cell=0.4)
        save(figure, ROOT / "eval" / "results" / "showcase", "png")


if __name__ == "__main__":
    main()
