"""Adaptive solving in which every sample has its own step, error norm and outcome.

A solve is a search and, where gradients are wanted, a replay. The search, without autograd, tries steps and finds for
each sample the steps that it accepts. The replay takes exactly those steps again under autograd, so that rejected
steps and lost samples leave no trace in the memory or in the gradient; step sizes count as constants.

Step control: Hairer, Nørsett and Wanner, "Solving Ordinary Differential Equations I", II.4 and IV.2 (PI).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .derivative import Selectable
from .fixed import Derivative, State, advance, recomputed
from .invariance import batch_invariant
from .options import SolveOptions
from .solution import Outcome, SampleCounts, Solution
from .tableaus import EmbeddedTableau

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
CROWDED = 0.75  # finished samples are left out once fewer than this share of the rows still run


def _pick(state: State, rows: Tensor) -> State:
    return tuple(part[rows] for part in state)


def _choose(mask: Tensor, new: State, old: State) -> State:
    return tuple(torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))


def _finite(*states: State) -> Tensor:
    flags = [torch.isfinite(part).reshape(len(part), -1).all(1) for state in states for part in state]
    return torch.stack(flags).all(0)


def _norm(values: State, scale: State) -> Tensor:
    """Return the root mean square of values / scale over all components of each sample, shape (n,)."""
    total = sum((v / s).reshape(len(v), -1).square().sum(1) for v, s in zip(values, scale, strict=True))
    return (cast(Tensor, total) / sum(part[0].numel() for part in values)).sqrt()


def _power(base: Tensor, exponent: float) -> Tensor:
    # exp and log round every element of a buffer alike, pow does not.
    return torch.exp(exponent * torch.log(base))


@dataclass(frozen=True)
class _Plan:
    """The steps that every sample accepts, in order: starts and step sizes (S, n), and how many each has, (n,)."""

    starts: Tensor
    step_sizes: Tensor
    count: Tensor


class _Path:
    """Collects states at the requested times from subsets of the samples."""

    def __init__(self, state: State, times: Tensor) -> None:
        self.state, self.times = state, times
        self.inner: list[list[tuple[Tensor, State]]] = [[] for _ in times]
        self.left: list[tuple[Tensor, State]] = []

    def inside(
        self, tableau: EmbeddedTableau, rows: Tensor, t: Tensor, step: Tensor, now: State, slopes: list[State]
    ) -> None:
        """Record the requested times that lie inside the steps of `rows`; a step of length 0 holds none."""
        if len(self.times) == 2:
            return
        between = self.times[1:-1].unsqueeze(1)
        hit = ((between - t) * step > 0) & ((between - t - step) * step <= 0)
        for k in hit.any(1).nonzero().flatten().tolist():
            some = hit[k].nonzero().flatten()
            share = (self.times[k + 1] - t[some]) / step[some]
            weights = [share * (a + share * (b + share * (c + share * d))) for a, b, c, d in tableau.dense]
            state = []
            for i, part in enumerate(now):
                shape = (-1, *[1] * (part.dim() - 1))
                own = [w.view(shape).to(part.dtype) for w in (*weights, step[some])]
                moved = sum(w * s[i][some] for w, s in zip(own[:-1], slopes, strict=True))
                state.append(part[some] + own[-1] * cast(Tensor, moved))
            self.inner[k + 1].append((rows[some], tuple(state)))

    def leave(self, rows: Tensor, state: State) -> None:
        """Record the last state of samples; every sample leaves once."""
        self.left.append((rows, state))

    def parts(self) -> State:
        """Return every component at every requested time, (T, n, ...); the last state where one was not reached."""
        last = self._gather(self.left)
        path = [self.state]
        for pieces in self.inner[1:-1]:
            missing = torch.ones_like(self.left[0][0].new_zeros(len(last[0])), dtype=torch.bool)
            for rows, _ in pieces:
                missing[rows] = False
            rest = missing.nonzero().flatten()
            path.append(self._gather([*pieces, (rest, _pick(last, rest))]))
        path.append(last)
        return tuple(torch.stack([state[i] for state in path]) for i in range(len(last)))

    @staticmethod
    def _gather(pieces: list[tuple[Tensor, State]]) -> State:
        order = torch.cat([rows for rows, _ in pieces]).argsort()
        return tuple(torch.cat(parts)[order] for parts in zip(*(state for _, state in pieces), strict=True))


def _stages(
    derivative: Derivative, t: Tensor, step: Tensor, state: State, first: State, tableau: EmbeddedTableau
) -> tuple[State, list[State]]:
    """Return the state at the end of a step and the slopes of all stages; `first` is the slope at its start."""
    slopes, point = [first], state
    for weights, c in zip(tableau.a[1:], tableau.c[1:], strict=True):
        point = advance(state, slopes, weights, step)
        slopes.append(derivative(t + c * step, point))
    return point, slopes


def _scale(a: State, b: State, rtol: float, atol: float) -> State:
    return tuple(atol + rtol * torch.maximum(x.abs(), y.abs()) for x, y in zip(a, b, strict=True))


def _first_step(
    derivative: Derivative, t: Tensor, span: Tensor, state: State, slope: State, rtol: float, atol: float
) -> Tensor:
    """Guess the length of the first step, signed, (n,); Hairer et al., II.4, one evaluation."""
    scale = _scale(state, state, rtol, atol)
    size, speed = _norm(state, scale), _norm(slope, scale)
    small = (size < 1e-5) | (speed < 1e-5)
    guess = torch.where(small, torch.full_like(size, 1e-6), 0.01 * size / speed)
    guess = torch.minimum(guess, span.abs()) * span.sign()
    ahead = derivative(t + guess, advance(state, [slope], [1.0], guess))
    bend = _norm(tuple(a - b for a, b in zip(ahead, slope, strict=True)), scale) / guess.abs()
    steepest = torch.maximum(speed, bend)
    flat = torch.maximum(torch.full_like(guess, 1e-6), guess.abs() * 1e-3)
    step = torch.where(steepest <= 1e-15, flat, _power(0.01 / steepest, 0.2))
    step = torch.minimum(torch.minimum(100 * guess.abs(), step), span.abs())
    return torch.where(torch.isfinite(step) & (step > 0), step, guess.abs()) * span.sign()


@torch.no_grad()
def _search(
    derivative: Derivative,
    state: State,
    times: Tensor,
    tableau: EmbeddedTableau,
    options: SolveOptions,
) -> tuple[_Path, _Plan, Tensor, SampleCounts]:
    """Try steps until every sample has reached the last time or cannot; return path, plan, outcomes and counts."""
    n, device, rtol, atol = state[0].shape[0], state[0].device, options.rtol, options.atol
    start, end, span = times[0], times[-1], times[-1] - times[0]
    floor = 16 * torch.finfo(times.dtype).eps * torch.maximum(span.abs(), torch.maximum(start.abs(), end.abs()))
    path = _Path(state, times)

    rows = torch.arange(n, device=device)
    t = start.expand(n).clone()
    slope = derivative(t, state)
    running = _finite(state, slope)
    outcomes = torch.where(running, int(Outcome.STEP_CAP), int(Outcome.NON_FINITE)).to(torch.int8)
    step = _first_step(derivative, t, span.expand(n), state, slope, rtol, atol)
    last_error = torch.ones_like(t)
    held = torch.zeros_like(running)  # after a rejection the next step does not grow
    counts = torch.zeros(2, n, dtype=torch.int64, device=device)
    taken: list[tuple[Tensor, ...]] = []
    for _ in range(options.max_steps):
        alive = int(running.sum())
        if alive == 0:
            break
        if isinstance(derivative, Selectable) and alive < CROWDED * len(rows):
            path.leave(rows[~running], _pick(state, ~running))
            derivative = derivative.select(running)
            rows, t, step, last_error, held = (v[running] for v in (rows, t, step, last_error, held))
            state, slope, running = _pick(state, running), _pick(slope, running), running[running]

        final = (end - t).abs() <= step.abs() * (1 + 1e-6)
        length = torch.where(final, end - t, step)
        ahead, slopes = _stages(derivative, t, length, state, slope, tableau)
        error = _step_error(state, ahead, slopes, tableau, length, options)
        accepted = running & (error <= 1)

        taken.append(tuple(value.new_zeros(n).index_put((rows,), value) for value in (accepted, t, length)))
        counts[0, rows] += accepted
        counts[1, rows] += running & ~accepted
        path.inside(tableau, rows, t, torch.where(accepted, length, 0.0), state, slopes)

        t = torch.where(accepted, torch.where(final, end, t + length), t)
        state, slope = _choose(accepted, ahead, state), _choose(accepted, slopes[-1], slope)
        reached = accepted & final
        outcomes[rows[reached]] = int(Outcome.REACHED)

        step = length * _factor(error, last_error, accepted, held)
        last_error = torch.where(accepted, error.clamp(1e-4, 1.0), last_error)
        held = running & ~accepted
        running = running & ~reached
        stuck = running & (step.abs() < floor) & (held | ~final)
        why = torch.where(torch.isfinite(error), int(Outcome.STEP_TOO_SMALL), int(Outcome.NON_FINITE)).to(torch.int8)
        outcomes[rows[stuck]] = why[stuck]
        running = running & ~stuck
    path.leave(rows, state)
    nfe = torch.where(counts.sum(0) > 0, 2 + (tableau.stages - 1) * counts.sum(0), 2)
    return path, _plan(taken, n, times), outcomes, SampleCounts(nfe, counts[0], counts[1])


def _step_error(
    state: State, ahead: State, slopes: list[State], tableau: EmbeddedTableau, length: Tensor, options: SolveOptions
) -> Tensor:
    """Return each sample's error of a step in units of its tolerance, shape (n,); infinite where it is not finite."""
    missed = advance(tuple(torch.zeros_like(part) for part in state), slopes, tableau.error, length)
    error = _norm(missed, _scale(state, ahead, options.rtol, options.atol))
    return torch.where(_finite(ahead, slopes[-1]), error, torch.full_like(error, torch.inf)).nan_to_num(torch.inf)


def _factor(error: Tensor, last_error: Tensor, accepted: Tensor, held: Tensor) -> Tensor:
    """Return by what each sample's step is multiplied: a PI controller after an accepted step, else a plain one."""
    bounded = error.clamp(1e-10, 1e10)
    pull = torch.where(accepted, _power(bounded, -0.7 / 5) * _power(last_error, 0.4 / 5), _power(bounded, -1 / 5))
    factor = (SAFETY * pull).clamp(SHRINK, GROW)
    return torch.where(held | ~accepted, factor.clamp(max=1.0), factor)


def _plan(taken: list[tuple[Tensor, ...]], n: int, times: Tensor) -> _Plan:
    """Move each sample's accepted steps to the front."""
    if not taken:
        empty = times.new_zeros(0, n)
        return _Plan(empty, empty, torch.zeros(n, dtype=torch.int64, device=times.device))
    kept, starts, step_sizes = (torch.stack(column) for column in zip(*taken, strict=True))
    order = (~kept).to(torch.int8).argsort(dim=0, stable=True)
    count = kept.sum(0)
    most = int(count.max())
    return _Plan(starts.gather(0, order)[:most], step_sizes.gather(0, order)[:most], count)


def _replay(
    derivative: Derivative, state: State, times: Tensor, tableau: EmbeddedTableau, plan: _Plan, recompute: bool
) -> _Path:
    """Take the planned steps under autograd."""
    path = _Path(state, times)
    rows = torch.arange(state[0].shape[0], device=times.device)
    origin, count = state, plan.count

    def shed(keep: Tensor) -> Iterator[State]:
        path.leave(rows[~keep], _pick(state, ~keep))
        yield _pick(state, keep)
        yield _pick(origin, keep)

    if isinstance(derivative, Selectable) and bool((count == 0).any()):
        # A sample without a step may have no finite derivative, which would spoil shared gradients.
        keep = count > 0
        state, origin = shed(keep)
        rows, count, derivative = rows[keep], count[keep], derivative.select(keep)
    if len(rows) == 0:
        return path
    slope = derivative(times[0].expand(len(rows)), state)
    for i in range(plan.starts.shape[0]):
        active = count > i
        if isinstance(derivative, Selectable) and int(active.sum()) < CROWDED * len(rows):
            state, origin = shed(active)
            slope, derivative = _pick(slope, active), derivative.select(active)
            rows, count = rows[active], count[active]
            active = active[active]
        # Finished samples stand still where the derivative is known to be finite, so that 0 x inf never arises.
        t = torch.where(active, plan.starts[i, rows], times[0])
        length = torch.where(active, plan.step_sizes[i, rows], 0.0)
        now = _choose(active, state, origin)

        evaluate = recomputed(derivative) if recompute else derivative
        ahead, slopes = _stages(evaluate, t, length, now, slope, tableau)
        path.inside(tableau, rows, t, length, now, slopes)
        state, slope = _choose(active, ahead, state), _choose(active, slopes[-1], slope)
    path.leave(rows, state)
    return path


def _empty(state: State, times: Tensor) -> Solution:
    """Return the solution of no samples."""
    none = torch.zeros(0, dtype=torch.int64, device=state[0].device)
    parts = tuple(torch.stack([part] * len(times)) for part in state)
    return Solution(times, parts, 0, 0, 0, outcomes=none.to(torch.int8), counts=SampleCounts(none, none, none))


def _differentiable(derivative: Derivative, state: State, times: Tensor) -> bool:
    rates = derivative(times[0].expand(len(state[0])), state)
    return any(part.requires_grad for part in (*state, *rates))


def adaptive_solve(
    derivative: Derivative,
    state: State,
    times: Tensor,
    tableau: EmbeddedTableau,
    options: SolveOptions,
) -> Solution:
    """Solve with a step, an error norm and an outcome for each sample; nothing that a field does makes it raise.

    Args:
        derivative: maps times, shape (n,), and a state to rates of change. With a method `select(rows)` that returns
            the derivative of some of the samples, finished samples cost nothing.
        state: initial state, a tuple of tensors of shape (n, ...).
        times: requested times, shape (T,), strictly increasing or decreasing.
        tableau: an embedded pair of order 5(4).
        options: tolerances, the number of steps that a sample may try, and how gradients are found.
    """
    if state[0].shape[0] == 0:
        return _empty(state, times)
    with batch_invariant():
        path, plan, outcomes, counts = _search(derivative, state, times, tableau, options)
        if torch.is_grad_enabled() and _differentiable(derivative, state, times):
            path = _replay(derivative, state, times, tableau, plan, options.gradient == "checkpoint")
        parts = path.parts()
    nfe, accepted, rejected = (
        int(column.max()) if column.numel() else 0 for column in (counts.nfe, counts.accepted, counts.rejected)
    )
    return Solution(times, parts, nfe, accepted, rejected, outcomes=outcomes, counts=counts)
