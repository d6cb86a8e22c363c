from __future__ import annotations

import pytest

from flows.progress import Voice


def test_progress_goes_to_stderr_and_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    voice = Voice()
    voice.say("a sentence")
    voice.bar("step", 5, 10, 12.3, "loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "a sentence\n    step 5/10 (50%), 12 s left, loss 0.5\n"
    voice.quiet = True
    voice.say("a sentence")
    voice.bar("step", 6, 10, 1.0)
    assert capsys.readouterr() == ("", "")


def test_where_nobody_watches_a_terminal_a_bar_speaks_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 104.9, 105.1, 106.0])
    monkeypatch.setattr("flows.progress.time.monotonic", lambda: next(clock))
    voice = Voice()
    for done in range(1, 6):
        voice.bar("step", done, 5, 0.0)
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["1/5", "4/5"]
