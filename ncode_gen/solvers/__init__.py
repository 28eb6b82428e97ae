"""Solvers of ordinary differential equations and the `Solution` they return."""

from .derivative import checked
from .fixed import Derivative, State, fixed_steps, runge_kutta_step
from .grids import grid_of, nodes_of, random_grid
from .invariance import batch_invariant, is_batch_invariant
from .modes import casting_to, in_own_precision, is_plain, sees_numbers
from .options import METHODS, Gradient, LogDet, SolveOptions, check_method, evaluations
from .solution import Outcome, SampleCounts, Solution
from .solve import solve
from .tableaus import ADAPTIVE, FIXED, EmbeddedTableau, Tableau, fixed_tableau, has_fixed_steps, two_stages
from .times import Times, as_times

__all__ = [
    "ADAPTIVE",
    "FIXED",
    "METHODS",
    "Derivative",
    "EmbeddedTableau",
    "Gradient",
    "LogDet",
    "Outcome",
    "SampleCounts",
    "Solution",
    "SolveOptions",
    "State",
    "Tableau",
    "Times",
    "as_times",
    "batch_invariant",
    "casting_to",
    "check_method",
    "checked",
    "evaluations",
    "fixed_steps",
    "fixed_tableau",
    "grid_of",
    "has_fixed_steps",
    "in_own_precision",
    "is_batch_invariant",
    "is_plain",
    "nodes_of",
    "random_grid",
    "runge_kutta_step",
    "sees_numbers",
    "solve",
    "two_stages",
]
