"""What scores are called where they are shown, their units, and what is said of the solver behind them."""

from collections.abc import Mapping
from typing import Any

UNITS = {
    "elbo_nats": "nats",
    "nll_nats": "nats",
    "distortion_nats": "nats",
    "bits_per_dim": "bits",
    "bits_per_dim_bound": "bits",
    "rate_nats": "nats",
    "psnr": "dB",
    "psnr_fresh": "dB",
    "psnr_inverted": "dB",
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
    labels |= {"bits_per_dim_bound": "bound of the NLL per dimension", "rate_nats": "cost of the code"}
    labels |= {"mse_fresh": "mse, code and fresh noise", "mse_inverted": "mse, code and its own noise"}
    labels |= {"psnr_fresh": "psnr, code and fresh noise", "psnr_inverted": "psnr, code and its own noise"}
    labels |= {"label_accuracy": "samples of their label", "label_fid": "FID within classes, mean"}
    return labels | {"nll_nats": f"NLL [K={protocol.get('particles')}]"}


def solver_note(solver: Mapping[str, Any]) -> str:
    """Return which solver likelihoods come from, and what a coarser one gives instead.

    >>> solver_note({"refined": "rk4 x 8", "moved_nats": 0.01, "coarse": "rk4 x 2", "nll_gap_nats": 0.25})
    'rk4 x 8, which moved by 0.010 nats at the last doubling; rk4 x 2 would give an NLL lower by 0.250'
    >>> solver_note({"refined": "rk4 x 8", "moved_nats": 0.0, "coarse": "rk4 x 4", "nll_gap_nats": -0.0002})
    'rk4 x 8, which moved by 0.000 nats at the last doubling; rk4 x 4 gives the same NLL'
    >>> solver_note({"refined": "rk4 x 64", "moved_bits_per_dim": 0.0004})
    'rk4 x 64, which moved by 0.0004 bits a dimension at the last doubling'
    """
    if "moved_bits_per_dim" in solver:
        moved = solver["moved_bits_per_dim"]
        return f"{solver['refined']}, which moved by {moved:.4f} bits a dimension at the last doubling"
    gap, moved = solver["nll_gap_nats"], f"{solver['moved_nats']:.3f} nats"
    coarse = f"would give an NLL {'lower' if gap > 0 else 'higher'} by {abs(gap):.3f}"
    if abs(gap) < 0.0005:
        coarse = "gives the same NLL"
    return f"{solver['refined']}, which moved by {moved} at the last doubling; {solver['coarse']} {coarse}"
