"""Solvers of ordinary differential equations and the `Solution` they return."""

from .fixed import TABLEAUS, Derivative, State, Tableau, fixed_steps, runge_kutta_step
from .solution import Solution
from .solve import METHODS, check_method, random_grid, solve

__all__ = [
    "METHODS",
    "TABLEAUS",
    "Derivative",
    "Solution",
    "State",
    "Tableau",
    "check_method",
    "fixed_steps",
    "random_grid",
    "runge_kutta_step",
    "solve",
]
