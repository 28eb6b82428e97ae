"""The report of a run, and the list of runs."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ncode_gen.command import run_command
from ncode_gen.report import write_report
from ncode_gen.report.charts import line_chart
from ncode_gen.runfolder.history import find_runs, read_run
from ncode_gen.runfolder.records import write_record
from ncode_gen.runfolder.state import locked
from ncode_gen.runs import main


@pytest.fixture
def copied(trained, tmp_path: Path):
    return shutil.copytree(trained, tmp_path / "run")


class Page(HTMLParser):
    """Collects tags and what they would fetch, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.open, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.sources += [values[key] for key in ("src", "href") if key in values]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_training_ends_with_a_report_that_needs_nothing_else(trained: Path) -> None:
    text = (trained / "gallery" / "report.html").read_text()
    page = Page(text)
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "script" not in page.tags and "default-src 'none'" in text
    assert page.tags.count("img") == 6 and page.tags.count("svg") >= 4
    said = " ".join(page.texts)
    for part in ("epochs = 2", "Not scored yet", "python -m ncode_gen.train --training.epochs 2", "2 epochs in"):
        assert part in said
    assert len(text) < 5 * 2**20


def test_what_a_run_folder_says_cannot_write_into_the_page(copied: Any) -> None:
    hostile = "<script>alert(1)</script>"
    write_record(copied / "environment.json", {"run": "x", "device": hostile, "command": f"train.py {hostile}"})
    (copied / "gallery" / f"{hostile.replace('/', '')}.png").write_bytes(b"\x89PNG")
    (copied / "gallery" / "other.png").write_bytes(b"<html>")
    record = read_run(copied)
    assert "metrics.jsonl are damaged or of another run" in record.notices[0]
    page = Page(write_report(record, copied / "report.html").read_text())
    assert "script" not in page.tags and page.tags.count("img") == 7


def test_charts_leave_out_what_cannot_be_made() -> None:
    assert line_chart("a", {"x": [(0, float("nan"))]}, "epoch") is None
    (one,) = line_chart("a", {"x": [(1.0, 5.0)]}, "epoch")["lines"]
    assert one["points"] == [(58.0, 99.0, "x: 5 at epoch 1")]
    (many,) = line_chart("a", {"x": [(i, 1000.0 if i == 0 else 1.0 + i / 10) for i in range(20)]}, "epoch")["lines"]
    assert [bool(label) for _, _, label in many["points"]] == [False] + 19 * [True]


def listed(capsys: pytest.CaptureFixture[str], *names):
    try:
        main([*map(str, names)])
    finally:
        printed = capsys.readouterr().out
    return printed


def test_runs_are_listed_with_their_state(copied: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(copied, copied.parent / "again" / "other")
    other = copied.parent / "again" / "other"
    assert list(find_runs(str(copied.parent))) == [other, copied]
    (other / "weights.safetensors").unlink()
    printed = listed(capsys, copied.parent)
    assert re.search(r"/run +finished +2/2 .*report\.html", printed)
    assert re.search(r"/other +stopped +2/2", printed)
    with locked(copied):
        assert read_run(copied).progress == "training"
    assert read_run(copied).progress == "finished"


def test_scores_of_other_weights_are_not_shown(copied: Any, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"value": 1.5, "low": 1.0, "high": 2.0}
    write_record(copied / "evaluation.json", {"protocol": {"weights_digest": "0" * 16}, "scores": {"fid": score}})
    printed = listed(capsys, copied)
    assert "scores other weights" in " ".join(printed.split()) and "1.50" not in printed


def test_runs_side_by_side_show_what_differs_and_what_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    printed = listed(capsys, "mnist-ncode-open", "mnist-ncode-open-flow", "digits-ncode-open", "--compare")
    assert re.search(r"flow\.steps +4 +6 +4", printed)
    assert re.search(r"nll_nats +82\.49 ± 0\.4 ", printed)
    assert "not comparable: data is mnist" in " ".join(printed.split()) and "training.batch" in printed


def test_a_folder_without_runs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["runs", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2 and f"there are no runs in {tmp_path}" in capsys.readouterr().err


def test_a_name_without_a_run_is_reported_after_the_others(
    copied: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["runs", "nowhere", str(copied.parent)])
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and "there is no run folder nowhere" in printed.err and copied.name in printed.out
