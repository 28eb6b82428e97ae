"""Write the tables of README, those of eval/results/README.md and the headers of the recipes: `python eval/publish.py`.

Everything comes from the files in eval/results/ and checkpoints/.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from generation_cells import collected, entry
from generation_table import short_table
from headline import headlines, published
from summary import summaries

from ncode_gen.config import PriorSection, Recipe
from ncode_gen.runtime.files import write_text

ROOT = Path(__file__).parent.parent
START, END = "<!-- results -->", "<!-- end of results -->"
TITLES = {"digits": "Digits", "mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}


def cell(row: dict[str, Any], key: str, digits: int) -> str:
    """Return a score with half the width of its interval."""
    score = row["scores"].get(key)
    if score is None:
        return "-"
    half = (score["high"] - score["low"]) / 2
    return f"{score['value']:.{digits}f} ± {half:.{digits}f}"


def table(data: str, rows: list[dict[str, Any]]) -> str:
    """Return one image set's rows as a Markdown table."""
    protocol = rows[0]["protocol"]
    features = f"[{protocol['features']['name']}, n={protocol['n']}, test]"
    lines = [
        f"**{TITLES[data]}**, {protocol['likelihood']}, {rows[0]['epochs']} epochs, seed 0, "
        f"{protocol['environment']['threads']} CPU threads (`python eval/compare.py {data} "
        f"{' '.join(row['model'] for row in rows)}`):",
        "",
        f"| model | NLL, K={protocol['particles']} (nats) | -ELBO (nats) | FID{features} | KID | recall | s/epoch |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        elbo = row["scores"].get("elbo_nats")
        negative = "-" if elbo is None else f"{-elbo['value']:.2f} ± {(elbo['high'] - elbo['low']) / 2:.2f}"
        cells = [cell(row, "nll_nats", 2), negative, cell(row, "fid", 1), cell(row, "kid", 0)]
        cells += [cell(row, "recall", 3), f"{row['median_epoch_seconds']:.1f}"]
        lines.append(f"| `{row['model']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(row: dict[str, Any], seed: int) -> str:
    """Return the line of a recipe's header that says what was measured, of the model of a seed."""
    protocol, scores = row["protocol"], row["scores"]
    parts = [f"FID[{protocol['features']['name']}, n={protocol['n']}, test] {scores['fid']['value']:.1f}"]
    if "nll_nats" in scores:
        parts.insert(0, f"NLL {scores['nll_nats']['value']:.2f} nats (K={protocol['particles']})")
    environment = protocol["environment"]
    # A published run says where it was trained; its environment here is that of its evaluation.
    where = f"{row.get('threads', environment['threads'])} threads of {row.get('devices', environment['device'])}"
    return f"# Measured: {', '.join(parts)}; {row['training_seconds']:.0f} s of training on {where}, seed {seed}."


def _place(lines: list[str]) -> int:
    """Return the number of a header's line that says what was measured."""
    return next(i for i, line in enumerate(lines) if line.startswith(("# Not measured", "# Measured")))


def _replace(path: Path, told: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[_place(lines)] = told
    write_text(path, "\n".join(lines) + "\n")


def write_header(path: Path, row: dict[str, Any]) -> None:
    """Put what was measured into the header of a recipe."""
    _replace(path, measured(row, Recipe.load(path).seed))


def _studied_as(prior: PriorSection) -> str:
    """Return what the generation study calls a recipe's prior."""
    if prior.kind == "mixture":
        return f"mixture{prior.values()['components'] or ''}"
    return "flow" if prior.kind == "flow" else "own"


def write_studied_headers(folder: Path) -> None:
    """Put the scores of a generation study into the headers of recipes of which nothing else was measured.

    Args:
        folder: the study's cells of one image set. Those of another length or latent size than the recipe's are none
            of its own.
    """
    cells = collected(folder)
    for path in sorted((ROOT / "models" / folder.name).glob("*.toml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        recipe = Recipe.load(path)
        group = cells.get((path.stem, recipe.latent.dim, recipe.epochs, _studied_as(recipe.prior)))
        if group and not lines[_place(lines)].startswith("# Measured: "):
            seeds = f"{len(group)} seed" + "s" * (len(group) > 1)
            protocol = f"FID[{group[0]['features']}, n={group[0]['samples']}, test]"
            told = f"{protocol} {entry(group, 'fid', 1)}, {seeds}, in eval/results/generation-{folder.name}.md."
            _replace(path, f"# Measured in a study: {told}")


def _measured_rows(results: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the models that were compared, by image set."""
    found = {data: results / f"{data}.json" for data in TITLES}
    return {data: json.loads(path.read_text())["rows"] for data, path in found.items() if path.exists()}


def _studied(results: Path) -> list[Path]:
    """Return the folders of generation studies that hold finished cells."""
    return sorted(path for path in (results / "generation").glob("*") if any(path.glob("*.json")))


def page(results: Path) -> str:
    """Return the page of all studies' results in short form, as Markdown."""
    parts = [table(data, rows) for data, rows in _measured_rows(results).items()]
    cost = json.loads((results / "epoch_cost.json").read_text())
    names = list(cost["milliseconds_a_step"])
    parts.append(
        "The test set as a whole, 95 % intervals, likelihoods with a refined solver; protocols and the coarse values "
        f"are in `eval/results/`. A training step of {names[1]} on {cost['data']} takes "
        f"{cost['median_ratio']:.2f} times one of {names[0]}, quartiles {cost['ratio_quartiles'][0]:.2f} to "
        f"{cost['ratio_quartiles'][1]:.2f} "
        f"(`python eval/epoch_cost.py {cost['data']} {' '.join(names)}`)."
    )
    parts += [short_table(folder.name, folder) for folder in _studied(results)]
    return "# Results of the studies\n\n" + "\n\n".join(parts + summaries(results)) + "\n"


def main() -> None:
    """Replace the part of README between the two marks, a line in each measured recipe, and the page of all results."""
    results = ROOT / "eval" / "results"
    for data, rows in _measured_rows(results).items():
        for row in rows:
            write_header(ROOT / "models" / data / f"{row['model']}.toml", row)
    for folder in _studied(results):
        write_studied_headers(folder)
    write_text(results / "README.md", page(results))
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    body = f"{headlines(results)}\n\n{published(ROOT / 'checkpoints')}"
    write_text(path, f"{before}{START}\n\n{body}\n\n{END}{after}")


if __name__ == "__main__":
    main()
