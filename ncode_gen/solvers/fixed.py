"""Explicit Runge-Kutta methods on a given grid, in a loop that `torch.compile` takes whole."""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .tableaus import Tableau

State = tuple[Tensor, ...]
Derivative = Callable[[Tensor, State], State]


def advance(state: State, slopes: Sequence[State], weights: Sequence[float], step: Tensor) -> State:
    """Return state + step * sum of weights * slopes; `step` is a scalar, or one for each sample, shape (n,)."""
    moved = []
    for i, part in enumerate(state):
        terms = [w * slope[i] for w, slope in zip(weights, slopes, strict=True) if w != 0.0]
        if terms:
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            length = step.to(part.dtype)
            if step.dim():
                length = length.view(-1, *[1] * (part.dim() - 1))
            moved.append(part + length * total)
        else:
            moved.append(part)
    return tuple(moved)


def runge_kutta_step(
    derivative: Derivative,
    t: Tensor,
    step: Tensor,
    state: State,
    tableau: Tableau,
    last: Derivative | None = None,
    first: State | None = None,
) -> State:
    """Take one explicit Runge-Kutta step.

    Args:
        derivative: maps a time (scalar tensor) and a state to the state's rate of change.
        t: time at the start of the step, scalar.
        step: signed length of the step, scalar.
        state: tuple of tensors.
        tableau: the method's coefficients.
        last: evaluated instead of `derivative` in the last stage.
        first: the rates at the start of the step, where they are known without an evaluation.

    Returns:
        The state at `t + step`.
    """
    slopes: list[State] = [] if first is None else [first]
    for weights, c in list(zip(tableau.a, tableau.c, strict=True))[len(slopes) :]:
        evaluate = last if last is not None and len(slopes) == tableau.stages - 1 else derivative
        slopes.append(evaluate(t + c * step, advance(state, slopes, weights, step)))
    return advance(state, slopes, tableau.b, step)


def recomputed(derivative: Derivative) -> Derivative:
    """Return a derivative of which the backward pass keeps only time and state, and evaluates the rest again.

    A control that is rebuilt at every evaluation is then held once, not once an evaluation.
    """

    def evaluate(t: Tensor, *state: Tensor) -> State:
        return derivative(t, state)

    def again(t: Tensor, state: State) -> State:
        rates: State = checkpoint(evaluate, t, *state, use_reentrant=False)
        return rates

    return again


def fixed_steps(
    derivative: Derivative, state: State, grid: Tensor, tableau: Tableau, *, recompute: bool = False
) -> Iterator[State]:
    """Yield the state at each node of `grid`, the initial one first.

    Args:
        derivative: as in `runge_kutta_step`; its attribute `initial`, if any, are its rates at the first node.
        state: initial state, a tuple of tensors.
        grid: times of the nodes, shape (steps + 1,), increasing or decreasing.
        tableau: the method's coefficients.
        recompute: whether the backward pass makes each evaluation again. It starts with the last one, which therefore
            is kept: it costs no memory at the peak.
    """
    yield state
    again = recomputed(derivative) if recompute else derivative
    for i in range(grid.shape[0] - 1):
        last = derivative if i == grid.shape[0] - 2 else None
        first = getattr(derivative, "initial", None) if i == 0 else None
        state = runge_kutta_step(again, grid[i], grid[i + 1] - grid[i], state, tableau, last, first)
        yield state
