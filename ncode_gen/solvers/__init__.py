"""Solvers of ordinary differential equations and the `Solution` they return."""

from .fixed import Derivative, State, fixed_steps, runge_kutta_step
from .invariance import batch_invariant, is_batch_invariant
from .solution import Outcome, SampleCounts, Solution
from .solve import METHODS, Gradient, check_gradient, check_method, evaluations, nodes_of, random_grid, solve
from .tableaus import ADAPTIVE, FIXED, EmbeddedTableau, Tableau, fixed_tableau, has_fixed_steps, two_stages

__all__ = [
    "ADAPTIVE",
    "FIXED",
    "METHODS",
    "Derivative",
    "EmbeddedTableau",
    "Gradient",
    "Outcome",
    "SampleCounts",
    "Solution",
    "State",
    "Tableau",
    "batch_invariant",
    "check_gradient",
    "check_method",
    "evaluations",
    "fixed_steps",
    "fixed_tableau",
    "has_fixed_steps",
    "is_batch_invariant",
    "nodes_of",
    "random_grid",
    "runge_kutta_step",
    "solve",
    "two_stages",
]
