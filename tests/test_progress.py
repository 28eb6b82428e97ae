import pytest

from ncode_gen.runtime import progress


def test_a_line_a_while_tells_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with progress.track("work", 4, quiet=False) as shown:
        shown.advance(0)  # nothing is done yet, so nothing can be said of the rest
        shown.advance(1)
        shown.advance(3)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said if line] == ["work: 1/4", "work: 4/4"]


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with progress.track("work", 2, quiet=True) as shown:
        shown.advance(2)
    assert capsys.readouterr().err == ""
