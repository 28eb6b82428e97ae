"""What scores are called where they are shown, and their units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["UNITS", "score_labels"]

UNITS = {
    "elbo_nats": "nats",
    "nll_nats": "nats",
    "distortion_nats": "nats",
    "bits_per_dim": "bits",
    "psnr": "dB",
    "nfe": "evaluations",
}


def score_labels(protocol: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of scores that say by which protocol they were made; the others are called by their keys.

    >>> score_labels({"features": {"name": "inception"}, "n": 10, "split": "test", "particles": 8})["fid"]
    'FID[inception, n=10, test]'
    """
    features = protocol["features"]["name"]
    labels = {key: f"{key.upper()}[{features}, n={protocol['n']}, {protocol['split']}]" for key in ("fid", "kid")}
    labels |= {key: f"{key} [{features}]" for key in ("precision", "recall", "density", "coverage")}
    labels |= {"elbo_nats": "ELBO", "distortion_nats": "distortion", "bits_per_dim": "NLL per dimension"}
    return labels | {"nll_nats": f"NLL [K={protocol.get('particles')}]"}
