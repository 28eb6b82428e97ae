"""What README says is what happens."""

import doctest
import importlib
import re
import shlex
from typing import Any

import pytest

from ncode_gen.runfolder.run import find_run

from .conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    (python -m ncode_gen\.\w+ [^#\n]*)", TEXT, re.MULTILINE)


def test_the_python_examples_run() -> None:
    results = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert results.attempted > 10 and results.failed == 0


@pytest.mark.parametrize("line", LINES)
def test_the_commands_are_understood(line: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, _, module, *arguments = shlex.split(line)
    command = importlib.import_module(module)
    from ncode_gen.command import parse
    from ncode_gen.config import Recipe
    from ncode_gen.config.command_line import all_flags

    train = module.endswith("train")
    options = parse(all_flags(command.Options) if train else command.Options, module.split(".")[1], arguments, "")
    if train:
        recipe = Recipe.load(options.model) if options.model is not None else Recipe()
        command.parse_command(arguments, recipe)[1].check()
    elif getattr(options, "run", "").startswith("checkpoints"):
        assert find_run(options.run).is_dir()


def test_the_pictures_are_there() -> None:
    for path in re.findall(r"!\[[^]]*\]\(([^)]*)\)", TEXT):
        assert (ROOT / path).is_file(), path


def test_links_lead_somewhere() -> None:
    for path in re.findall(r"[^!]\[[^]]*\]\(([^)#:]*)\)", TEXT):
        assert (ROOT / path).exists() or (ROOT / f"{path}.md").exists(), path
