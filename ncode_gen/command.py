"""What the commands share: flags, and errors as one message."""

import dataclasses
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from .errors import UserError
from .runtime.allocator import keep_freed_memory
from .runtime.paths import user_path
from .runtime.signals import Interrupted, stop_signals

Options = TypeVar("Options")
PATHS = ("run", "runs", "out", "root")  # that are held as text
MOST_GUIDANCE = 100.0


def parse(kind: type[Options], name: str, argv: list[str], description: str, default: Any = None) -> Options:
    """Read a command line into a dataclass; --help explains every flag, a wrong one is answered with the nearest.

    Raises:
        SystemExit: code 2 for a wrong command line, 0 after --help.
    """
    import tyro

    argv = without_plugins(argv)
    extra = {} if default is None else {"default": default}
    options: Options = tyro.cli(
        kind,
        prog=f"python -m ncode_gen.{name}",
        args=argv,
        description=description,
        use_underscores=True,
        **extra,
    )
    return _at_home(options)


def check_least(options: object, **least: int) -> None:
    """Raise a `UserError`, if a flag, by its name, is below the least that it may be; 0 stands for not given."""
    for name, bound in least.items():
        if (value := getattr(options, name) or 0) < bound:
            raise UserError(f"--{name.replace('_', '-')} must be at least {bound}, got {value}")


def check_guidance(options: object) -> None:
    """Raise a `UserError`, if `guidance` or `autoguidance` is beyond use."""
    for name in ("guidance", "autoguidance"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= MOST_GUIDANCE:
            raise UserError(f"--{name} must be from 0 to {MOST_GUIDANCE:g}, got {value:g}")


def without_plugins(argv: Sequence[str]) -> list[str]:
    """Load the plugins that a command line names, and return it without them: they decide which flags there are.

    Raises:
        UserError: there is no such plugin, or it cannot be imported.
    """
    rest, plugins = list(argv), list[str]()
    while found := next((number for number, word in enumerate(rest) if word.partition("=")[0] == "--plugin"), -1) + 1:
        _, given, name = rest.pop(found - 1).partition("=")
        if not given and found > len(rest):
            raise UserError("--plugin needs the name of a module, or a Python file")
        plugins.append(name if given else rest.pop(found - 1))
    if plugins:
        from .config.registry import load_plugins

        load_plugins(plugins)
    return rest


def _at_home(options: Options) -> Options:
    """Return options whose paths begin at the user's home folder where they begin with ~ (shells leave --out=~/a)."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, options)):
        value = getattr(options, field.name)
        if isinstance(value, Path):
            found[field.name] = user_path(value)
        elif field.name in PATHS and isinstance(value, str) and value.startswith("~"):
            found[field.name] = str(user_path(value)) + "/" * value.endswith("/")
        elif field.name in PATHS and isinstance(value, tuple | list):
            found[field.name] = type(value)(str(user_path(each)) if each.startswith("~") else each for each in value)
    return dataclasses.replace(cast(Any, options), **found) if found else options


def print_data_notes(notes: Sequence[str], warnings: Sequence[str], *, quiet: bool) -> None:
    """Print how images were read and split; warnings even if quiet."""
    for line in [*([] if quiet else [f"note: {line}" for line in notes]), *(f"warning: {line}" for line in warnings)]:
        print(line, file=sys.stderr)


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main`, and turn a user's mistake into an error message and a nonzero exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without a letter shows its number instead
            stream.reconfigure(errors="backslashreplace")
    keep_freed_memory()
    for number in stop_signals():
        signal.signal(number, _end)  # as Ctrl-C, so that no half-written file is left behind
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}".replace("\n", "\\n"), file=sys.stderr)
        raise SystemExit(error.code) from None
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except (MemoryError, RuntimeError) as error:
        from .runtime.memory import ran_out

        if not ran_out(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "no more to be had"
        remedy = "a smaller training.batch or a larger training.accumulate, or another --device, takes less"
        print(f"error: memory ran out ({reason}); {remedy}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:
        # The reader of our output is gone, so nothing more can be printed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _end(number: int, frame: object) -> None:
    raise Interrupted(number)
