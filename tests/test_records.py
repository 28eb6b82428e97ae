"""JSON that a run writes about itself, and what of it is believed."""

import json
from pathlib import Path
from typing import Any

import pytest

from ncode_gen.errors import UserError
from ncode_gen.runfolder.records import JsonLines, read_record, write_record


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"scores": {"fid": 1.5}, "name": "é"})
    assert read_record(path) == {"scores": {"fid": 1.5}, "name": "é"}
    assert json.loads(path.read_text())["scores"] == {"fid": 1.5}
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.json")


@pytest.mark.parametrize("change", [('"fid": 1.5', '"fid": 1.4'), ('"check"', '"chek"'), ("}", ""), ("{", "[" * 10**5)])
def test_a_changed_record_is_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"fid": 1.5})
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=r"record\.json is damaged"):
        read_record(path)


def test_lines_of_another_run_or_changed_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "rows.jsonl", "a")
    for step in range(3):
        lines.append({"step": step, "loss": 0.5 + step})
    text = lines.path.read_text()
    lines.path.write_text(text.replace("1.5", "1.6") + "[1]\n")
    assert [row["step"] for row in lines.read()] == [0, 2] and lines.damaged == 2
    other = JsonLines(lines.path, "b")
    assert other.read() == [] and other.damaged == 4
