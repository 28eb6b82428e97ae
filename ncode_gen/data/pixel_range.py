"""Deep pixels: which of their values become black and white, by one rule for a whole set of pictures."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# The largest values of pixels of 1, 8, 10, 12, 14 and 16 bits.
DEPTHS = (1, 255, 1023, 4095, 16383, 65535)
OVERSHOOT = 0.05  # of the unit interval, such as resampling leaves
UNIT_UP_TO, OWN_UP_TO = 2, 64


@dataclass(frozen=True)
class PixelRange:
    """The values that become black and white; what lies outside is clipped.

    Args:
        black: becomes 0 of 255.
        white: becomes 255 of 255; above `black`.

    >>> PixelRange(0, 4095).to_bytes(np.array([0, 2048, 4095, 9999])).tolist()
    [0, 128, 255, 255]
    """

    black: float
    white: float

    def to_bytes(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return values as bytes in [0, 255], rounded."""
        share = (values.astype(np.float64) - self.black) / (self.white - self.black)
        return np.clip(np.round(255 * share), 0, 255).astype(np.uint8)

    def outside(self, values: np.ndarray[Any, Any]) -> int:
        """Return how many values are clipped."""
        return int(((values < self.black) | (values > self.white)).sum())


class RangeFinder:
    """Looks at all deep pixels of a set, and says which range they have.

    Whole numbers have the smallest common depth (8, 10, 12, 14 or 16 bits) that holds the largest of the set; numbers
    with a fraction have [0, 1] or [-1, 1] where they keep to it, but for resampling.

    >>> finder = RangeFinder()
    >>> for scan in (np.array([0, 250]), np.array([3, 4000])):
    ...     finder.see(scan)
    >>> finder.found()
    PixelRange(black=0.0, white=4095.0)
    """

    def __init__(self) -> None:
        self.low, self.high, self.pictures, self.whole = math.inf, -math.inf, 0, True

    def see(self, values: np.ndarray[Any, Any]) -> None:
        """Take the finite values of one picture into account."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.whole &= np.issubdtype(values.dtype, np.integer)
        self.pictures += 1

    def found(self) -> PixelRange:
        """Return the range of all that was seen."""
        if not self.whole:
            signed = -1 - OVERSHOOT <= self.low < -OVERSHOOT
            if signed and self.high <= 1 + OVERSHOOT:
                return PixelRange(-1.0, 1.0)
            if self.high <= UNIT_UP_TO:
                return PixelRange(0.0, 1.0)
            if self.high < OWN_UP_TO:
                return PixelRange(0.0, self.high)
        return PixelRange(0.0, float(next((depth for depth in DEPTHS if self.high <= depth), self.high)))

    def note(self, used: PixelRange, sets: int, clipped: int) -> str:
        """Return one line for the user.

        Args:
            used: the range that is used.
            sets: how many pictures the set has.
            clipped: how many values lie outside of the range.
        """
        lost = f"; {clipped} values outside are clipped" if clipped else ""
        return (
            f"{self.pictures} of {sets} pictures have more than 8 bits a channel, with values from {self.low:g} to "
            f"{self.high:g}: {used.black:g} is black and {used.white:g} white{lost}; data.range sets another range"
        )
