"""A run in one page to read in a browser."""

from .page import write_report

__all__ = ["write_report"]
