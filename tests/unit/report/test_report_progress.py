import io
import re

import pytest

from scaler.report.progress import TerminalProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "110")


def test_a_pipe_gets_one_plain_line_at_each_start_and_end():
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        for done in range(4):
            progress("memory", done, max(done, 1))  # a total that grows
        progress("throughput", 0, 8)
        progress("throughput", 8, 8)
    lines = stream.getvalue().splitlines()
    assert [re.sub(r"in [\d.]+ \w+$", "in T", line) for line in lines] == [
        "memory: started, 0 of 1 tasks done",
        "memory: done, 3 of 3 tasks in T",
        "throughput: started, 0 of 8 tasks done",
        "throughput: done, 8 of 8 tasks in T",
    ]
    assert stream.getvalue().replace("\n", "").isprintable()


def test_a_notice_stands_between_the_phases():
    stream = io.StringIO()
    with TerminalProgress(stream) as progress:
        progress("memory", 1, 1)
        progress.notice("3 s spent")
        progress("noise", 0, 1)
    words = [line.split(":")[0] + line.partition(":")[2][:5] for line in stream.getvalue().splitlines()]
    assert words == ["memory star", "memory done", "3 s spent", "noise star", "noise done"]


def test_a_failure_says_how_far_the_phase_came():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), TerminalProgress(stream) as progress:
        progress("noise\x1b", 1, 2)
        raise RuntimeError
    assert "noise?: stopped, 1 of 2 tasks" in stream.getvalue()


def test_nothing_told_prints_nothing():
    stream = io.StringIO()
    with TerminalProgress(stream):
        pass
    assert stream.getvalue() == ""


def test_it_speaks_on_standard_error(capsys):
    with TerminalProgress() as progress:
        progress("memory", 0, 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "memory: started" in captured.err


def test_a_terminal_gets_a_bar_per_phase(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with TerminalProgress(stream) as progress:
        progress("memory", 1, 4)
        progress("memory", 4, 4)
        progress("convergence", 2, 9)
    text = stream.getvalue()
    assert re.search(r"memory .*4/4 .*tasks", text)
    assert re.search(r"convergence .*2/9 .*left", text)


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with TerminalProgress(stream) as progress:
        progress("memory", 0, 1)
    assert "\x1b" not in stream.getvalue()
