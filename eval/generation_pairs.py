"""What two rows of the generation study differ by, seed by seed: equal seeds see the same images in the same order."""

from __future__ import annotations

from collections.abc import Iterator

from generation_cells import Cell, Cells, Key
from intervals import interval

__all__ = ["differences", "pairs", "pairs_table"]

Pair = tuple[str, str, int, Key, Key]  # score, its name, its digits, row, row beside it
FID = ("fid", "FID", 2)
ERRORS = (("distortion_nats", "distortion", 2), ("mse", "MSE of copies", 5), FID)
NLL = ("nll_nats", "NLL", 2)
POSTERIORS = ("ffjord", "iaf", "node", "vae")


def _beside(
    cells: Cells, model: str, others: tuple[str, ...], prior: str, scores: tuple[tuple[str, str, int], ...]
) -> Iterator[Pair]:
    """Yield a model beside others of equal size, epochs and prior."""
    for key in cells:
        if (key[0], key[3]) == (model, prior):
            there = [(other, *key[1:]) for other in others]
            yield from ((*score, key, row) for row in there if row in cells for score in scores)


def pairs(cells: Cells) -> Iterator[Pair]:
    """Yield what is compared, where it was run: two priors of one model, then two models with one prior."""
    for key in cells:
        there = (*key[:3], "mixture10")
        if key[3] == "flow" and there in cells:
            yield (*FID, key, there)
    for model in ("ncode-autoencoder", "ncode-autoencoder-closed"):
        yield from _beside(cells, model, ("node-autoencoder", "ae"), "flow", (FID,))
    yield from _beside(cells, "ncode-refined", ("ncode-refined-static",), "flow", (FID,))
    yield from _beside(cells, "ncode-decoder", ("conv-decoder", "residual-decoder"), "flow", ERRORS)
    yield from _beside(cells, "ncode-open", ("ncode-closed", "ncode-closed-film", *POSTERIORS), "own", (NLL,))
    for model in ("ncode-closed", "ncode-closed-film"):
        yield from _beside(cells, model, POSTERIORS, "own", (NLL,))


def differences(own: list[Cell], other: list[Cell], score: str) -> list[float]:
    """Return the score of the one less that of the other, for each seed that both have."""
    held, there = (
        {c["seed"]: c["scores"][score]["value"] for c in group if score in c["scores"]} for group in (own, other)
    )
    return [held[seed] - there[seed] for seed in sorted(held.keys() & there.keys())]


def pairs_table(cells: Cells) -> list[str]:
    """Return the lines of a table of all pairs with at least two seeds in common; no lines, if there are none."""
    rows = []
    for score, title, digits, own, other in pairs(cells):
        found = differences(cells[own], cells[other], score)
        if len(found) < 2:
            continue
        mean, half = interval([{"difference": value} for value in found], "difference")
        named = [f"{model}, {prior}" if own[0] == other[0] else model for model, _, _, prior in (own, other)]
        lower = f"{sum(value < 0 for value in found)} of {len(found)}"
        rows.append(f"| {title} | {named[0]} | {named[1]} | {mean:+.{digits}f} ± {half:.{digits}f} | {lower} |")
    if not rows:
        return []
    return [
        "",
        "Differences of two rows, seed by seed, the first less the second (95 % interval of the mean; lower is better "
        "in all of these scores):",
        "",
        "| score | row | beside it | difference | lower in |",
        "|---|---|---|---:|---:|",
        *rows,
    ]
