"""Ctrl-C, SIGTERM and the warnings of clusters as requests, answered between two steps so that no step is half done."""

import contextlib
import signal
import threading
from collections.abc import Iterator


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

    def check(self) -> None:
        """Raise `Interrupted`, if a signal asked to stop."""
        if self.number:
            raise Interrupted(self.number)


def stop_signals() -> tuple[int, ...]:
    """Return the signals that end work in good order: those that ask, and those that warn (a closed terminal, SLURM's).

    What the process was started to ignore, such as SIGHUP below nohup, stays ignored.

    >>> signal.SIGTERM in stop_signals()
    True
    """
    names = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")  # not every system has all
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return tuple(number for number in numbers if signal.getsignal(number) != signal.SIG_IGN)


@contextlib.contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """Turn the first signal to stop into a request; a second SIGINT or SIGTERM raises `Interrupted` at once.

    Outside of the main thread, which alone receives signals, nothing is changed.
    """
    request = StopRequest()

    def ask(number: int, frame: object) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            request.check()
        request.number = request.number or number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, *stop_signals())}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
