"""Butcher tableaus of the explicit Runge-Kutta methods.

Sources: Dormand and Prince, "A family of embedded Runge-Kutta formulae", 1980, with the dense output of Hairer,
Nørsett and Wanner, "Solving Ordinary Differential Equations I", II.6; Tsitouras, "Runge-Kutta pairs of order 5(4)
satisfying only the first column simplifying assumption", 2011.
"""

from dataclasses import dataclass

TWO_STAGES = "rk2:"


@dataclass(frozen=True)
class Tableau:
    """An explicit method: stage weights `a`, result weights `b`, stage times `c`."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    @property
    def stages(self) -> int:
        """Evaluations of the derivative in a step."""
        return len(self.b)


@dataclass(frozen=True)
class EmbeddedTableau(Tableau):
    """A pair of order 5(4) whose last stage is the first of the next step.

    Attributes:
        error: weights of the stages in the estimated error of a step.
        dense: weights of the stages in the state inside a step, at the share s of it, as polynomials in s:
            coefficients of s, s^2, s^3, s^4 for each stage.
    """

    error: tuple[float, ...]
    dense: tuple[tuple[float, float, float, float], ...]


FIXED = {
    "euler": Tableau(a=((),), b=(1.0,), c=(0.0,)),
    "midpoint": Tableau(a=((), (0.5,)), b=(0.0, 1.0), c=(0.0, 0.5)),
    "heun": Tableau(a=((), (1.0,)), b=(0.5, 0.5), c=(0.0, 1.0)),
    "rk4": Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0)),
}


def two_stages(alpha: float) -> Tableau:
    """Return the method of second order whose second stage lies a share of the step ahead.

    All methods of two stages and second order are of this family: midpoint (1/2), Ralston (2/3), Heun (1).

    Args:
        alpha: above 0, at most 1.

    Raises:
        ValueError: another number.

    >>> two_stages(0.5) == FIXED["midpoint"], two_stages(1.0) == FIXED["heun"]
    (True, True)
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"the second stage must lie above 0 and at most 1 of the step ahead, got {alpha}")
    late = 0.5 / alpha
    return Tableau(a=((), (alpha,)), b=(1 - late, late), c=(0.0, alpha))


def has_fixed_steps(method: str) -> bool:
    """Return whether `fixed_tableau` knows a method."""
    return method in FIXED or method.startswith(TWO_STAGES)


def fixed_tableau(method: str) -> Tableau:
    """Return the tableau of a method of fixed steps, by its name or by "rk2:ALPHA".

    Raises:
        ValueError: no such method, or an alpha that is no number or not one for `two_stages`.

    >>> fixed_tableau("rk2:0.25").b
    (-1.0, 2.0)
    """
    if method in FIXED:
        return FIXED[method]
    if not method.startswith(TWO_STAGES):
        raise ValueError(f"{method!r} is not a method of fixed steps; choose {', '.join(FIXED)} or {TWO_STAGES}ALPHA")
    try:
        alpha = float(method.removeprefix(TWO_STAGES))
    except ValueError:
        raise ValueError(f"{TWO_STAGES}ALPHA needs a number such as {TWO_STAGES}0.4, got {method!r}") from None
    return two_stages(alpha)


def _dormand_prince() -> EmbeddedTableau:
    b = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
    fourth = (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
    bend = (
        -12715105075 / 11282082432,
        0.0,
        87487479700 / 32700410799,
        -10690763975 / 1880347072,
        701980252875 / 199316789632,
        -1453857185 / 822651844,
        69997945 / 29380423,
    )
    dense = []
    for i in range(7):
        first, last = float(i == 0), float(i == 6)
        square = 3 * b[i] - 2 * first - last + bend[i]
        dense.append((first, square, -2 * b[i] + first + last - 2 * bend[i], bend[i]))
    return EmbeddedTableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            b[:6],
        ),
        b=b,
        c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        error=tuple(x - y for x, y in zip(b, fourth, strict=True)),
        dense=tuple(dense),
    )


def _tsitouras() -> EmbeddedTableau:
    b = (
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0.0,
    )
    return EmbeddedTableau(
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
            b[:6],
        ),
        b=b,
        c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
        error=(
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            0.015151515151515152,
        ),
        dense=(
            (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0.0, 0.13169999999999998, -0.2234, 0.1017),
            (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0.0, 1.5, -4.0, 2.5),
        ),
    )


ADAPTIVE = {"dopri5": _dormand_prince(), "tsit5": _tsitouras()}
