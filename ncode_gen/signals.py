"""Ctrl-C and SIGTERM as requests that are met between two steps, so that no step is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["Interrupted", "StopRequest", "heed_signals"]


class Interrupted(Exception):
    """Work was stopped by a signal.

    Attributes:
        code: exit code of the process, 128 and the signal's number, as shells have it.
    """

    def __init__(self, number: int, message: str = "stopped") -> None:
        super().__init__(message)
        self.number, self.code = number, 128 + number


class StopRequest:
    """Whether a signal asked to stop.

    Attributes:
        number: the signal's number; 0 as long as there was none.
    """

    number: int = 0

    def meet(self) -> None:
        """Raise `Interrupted`, if a signal asked to stop."""
        if self.number:
            raise Interrupted(self.number)


@contextlib.contextmanager
def heed_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one raises `Interrupted` wherever the work stands.

    Outside of the main thread, which alone receives signals, nothing is changed.
    """
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        request.meet()
        request.number = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
