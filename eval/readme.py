"""Write README's table of results from eval/results/: `python eval/readme.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ncode_gen.files import write_atomically

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
        cells += [cell(row, "recall", 3), f"{row['median_epoch_seconds']:.0f}"]
        lines.append(f"| `{row['model']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Replace the part of README between the two marks."""
    results = ROOT / "eval" / "results"
    parts = [
        table(data, json.loads((results / f"{data}.json").read_text())["rows"])
        for data in TITLES
        if (results / f"{data}.json").exists()
    ]
    cost = json.loads((results / "epoch_cost.json").read_text())
    names = list(cost["milliseconds_a_step"])
    parts.append(
        "The test set as a whole, 95 % intervals, likelihoods with a refined solver; protocols and the coarse values "
        f"are in `eval/results/`. A training step of {names[1]} on {cost['data']} takes "
        f"{cost['ratio_of_medians']:.2f} times one of {names[0]} "
        f"(`python eval/epoch_cost.py {cost['data']} {' '.join(names)}`)."
    )
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    body = "\n\n".join(parts)
    new = f"{before}{START}\n\n{body}\n\n{END}{after}"
    write_atomically(path, lambda partial: partial.write_text(new, encoding="utf-8"))


if __name__ == "__main__":
    main()
