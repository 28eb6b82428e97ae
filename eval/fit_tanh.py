"""Fit the rational approximation of tanh that shallow.cpp uses, and print it: `python eval/fit_tanh.py`.

tanh(x) = x P(x^2) / Q(x^2) on |x| <= 9, P and Q of degree 4, Q(0) = 1: least squares of the relative error, its weights
raised where the error is large until it is nearly even. Beyond 9 tanh is 1 to float32's rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REACH, DEGREE, ROUNDS = 9.01, 4, 60


def fit() -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the coefficients of P and Q, lowest first, and the largest relative error in exact arithmetic."""
    nodes = REACH * 0.5 * (1 - np.cos(np.pi * (np.arange(4000) + 0.5) / 4000))
    x = np.sort(np.concatenate([nodes, np.linspace(1e-3, 2, 2000)]))
    t, ratio = (x / REACH) ** 2, np.tanh(x) / x
    powers = np.stack([t**i for i in range(DEGREE + 1)], 1)
    weight, below = np.ones_like(x), np.ones_like(x)
    best, lowest = np.zeros(2 * DEGREE + 1), np.inf
    for _ in range(ROUNDS):
        scale = (weight / (ratio * below))[:, None]
        system = np.concatenate([scale * powers, -scale * ratio[:, None] * powers[:, 1:]], 1)
        found = np.linalg.lstsq(system, scale[:, 0] * ratio, rcond=None)[0]
        below = 1 + powers[:, 1:] @ found[DEGREE + 1 :]
        error = np.abs(powers @ found[: DEGREE + 1] / below / ratio - 1)
        if error.max() < lowest:
            best, lowest = found, float(error.max())
        weight *= (0.3 + error / error.max()) ** 0.5
    units = REACH ** (2.0 * np.arange(DEGREE + 1))
    return best[: DEGREE + 1] / units, np.concatenate([[1.0], best[DEGREE + 1 :]]) / units, lowest


def main() -> None:
    """Print the coefficients and the error, in exact arithmetic and in float32."""
    above, below, error = fit()
    x = np.linspace(-9, 9, 1_000_001, dtype=np.float32)
    x = x[x != 0]
    value = x * np.polyval(above[::-1].astype(np.float32), x * x) / np.polyval(below[::-1].astype(np.float32), x * x)
    rounded = np.abs(value / np.tanh(x.astype(np.float64)) - 1).max()
    print("P:", ", ".join(f"{c:.9g}" for c in above))
    print("Q:", ", ".join(f"{c:.9g}" for c in below))
    print(f"relative error {error:.2g}, in float32 {rounded:.2g}")


if __name__ == "__main__":
    main()
