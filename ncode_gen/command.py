"""What the commands share: flags, and errors told in one sentence."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from .allocator import keep_freed_memory
from .errors import UserError
from .signals import Interrupted

__all__ = ["parse", "run_command"]

Options = TypeVar("Options")


def parse(kind: type[Options], name: str, argv: list[str], description: str, default: Any = None) -> Options:
    """Read a command line into a dataclass; --help explains every flag, a wrong one is answered with the nearest.

    Raises:
        SystemExit: code 2 for a wrong command line, 0 after --help.
    """
    import tyro

    extra = {} if default is None else {"default": default}
    options: Options = tyro.cli(
        kind,
        prog=f"python -m ncode_gen.{name}",
        args=argv,
        description=description,
        use_underscores=True,
        **extra,
    )
    return options


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main`, and turn a user's mistake into one sentence and an exit code other than 0."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _end)  # as Ctrl-C, so that no half-written file is left behind
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.code) from None
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (MemoryError, RuntimeError) as error:
        from .memory import ran_out

        if not ran_out(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no more to be had"
        remedy = "a smaller training.batch or a larger training.accumulate, or another --device, takes less"
        print(f"error: memory ran out ({reason}); {remedy}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:
        # The reader of our output went away; there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _end(number: int, frame: object) -> None:
    raise Interrupted(number)
