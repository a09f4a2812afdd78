"""Progress on a terminal and off it."""

import io

import pytest

from fathom.runtime.commands import progress as module
from fathom.runtime.commands.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_at_most_every_ten_seconds(clock):
    out = io.StringIO()
    with Progress(100, "photos", stream=out) as bar:
        for _ in range(50):
            clock[0] += 1
            bar.advance()
    lines = out.getvalue().splitlines()
    assert len(lines) == 5 and lines[0] == "10 of 100 photos, about 90 s to go"


def test_the_time_left_follows_the_last_minutes(clock):
    out = io.StringIO()
    with Progress(2000, "steps", stream=out) as bar:
        for step in range(1500):
            clock[0] += 0.1 if step < 1000 else 1  # the last steps take ten times as long
            bar.advance()
    assert out.getvalue().splitlines()[-1].endswith(" of 2000 steps, about 8 min to go")


def test_steps_of_an_earlier_run_say_nothing_about_the_time_left(clock):
    out = io.StringIO()
    with Progress(1000, "steps", stream=out) as bar:
        bar.advance_to(900, earlier=True)
        for step in range(901, 911):
            clock[0] += 1
            bar.advance_to(step)
    assert out.getvalue() == "910 of 1000 steps, about 90 s to go\n"


def test_nothing_is_foretold_before_the_first_step(clock):
    out = io.StringIO()
    with Progress(3, "photos", stream=out) as bar:
        clock[0] += 11
        bar.advance(0)
    assert out.getvalue() == "0 of 3 photos\n"


def test_short_work_says_nothing(clock):
    out = io.StringIO()
    with Progress(3, "photos", stream=out) as bar:
        bar.advance(3)
    assert out.getvalue() == ""


def test_quiet_is_quiet_but_alarms_are_heard(clock):
    out = Terminal()
    with Progress(3, "photos", quiet=True, stream=out) as bar:
        clock[0] += 60
        bar.advance()
        bar.message("a remark")
        bar.alarm("warning: a")
    assert out.getvalue() == "warning: a\n"


def test_a_terminal_gets_a_bar_and_lines_above_it():
    pytest.importorskip("tqdm")
    out = Terminal()
    with Progress(4, "photos", stream=out) as bar:
        bar.advance(2)
        bar.alarm("warning: look")
    assert "0%" in out.getvalue() and "warning: look\n" in out.getvalue()
    bar.close()


def test_without_tqdm_a_terminal_gets_plain_lines(monkeypatch, clock):
    import sys

    monkeypatch.setitem(sys.modules, "tqdm", None)
    out = Terminal()
    with Progress(4, "photos", stream=out) as bar:
        clock[0] += 11
        bar.advance()
    assert out.getvalue() == "1 of 4 photos, about 33 s to go\n"


def test_results_go_to_stdout(capsys):
    with Progress(4, "photos", stream=io.StringIO()) as bar:
        bar.result("one")
    assert capsys.readouterr().out == "one\n"


def test_reaching_never_goes_back():
    with Progress(10, "photos", stream=io.StringIO()) as bar:
        bar.advance_to(4)
        bar.advance_to(2)
        assert bar.done == 4
