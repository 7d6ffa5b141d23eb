"""Claims about what one sees of long work: a bar with time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from harness.progress import PLAIN_EVERY_S, Bar, left_text, output

ROOT = Path(__file__).parents[1]


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "says"),
    [
        (0, 10, 5.0, ""),
        (10, 10, 5.0, ""),
        (5, 10, 20.0, "about 20 s left"),
        (1, 11, 60.0, "about 10 min left"),
        (1, 101, 360.0, "about 10.0 h left"),
        (9, 10, 0.9, "about 1 s left"),
    ],
)
def test_time_left_is_told_at_the_pace_so_far(done: int, total: int, elapsed: float, says: str) -> None:
    assert left_text(done, total, elapsed) == says


def plain() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, force_terminal=False, width=80), written


def test_without_a_terminal_short_work_says_nothing_and_long_work_a_line_now_and_then() -> None:
    console, written = plain()
    clock = Clock()
    with Bar(console, "tuning", clock) as bar:
        for done in range(1, 101):
            clock.now += 1.0
            bar.moved(done, 100)
    lines = written.getvalue().splitlines()
    assert lines == [
        "tuning: 30 of 100, about 70 s left",
        "tuning: 60 of 100, about 40 s left",
        "tuning: 90 of 100, about 10 s left",
    ]
    assert PLAIN_EVERY_S == 30


def test_what_was_done_before_says_nothing_of_the_pace() -> None:
    console, written = plain()
    clock = Clock()
    with Bar(console, "models write kernels", clock) as bar:
        bar.begin(100, 90)
        clock.now += 40.0
        bar.moved(91, 100)
    assert written.getvalue() == "models write kernels: 91 of 100, about 6 min left\n"


def test_with_json_people_are_told_on_standard_error() -> None:
    assert output(as_json=True).stderr and not output().stderr


def on_a_terminal(program: str) -> str:
    """What a program writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    assert process.wait(60) == 0
    return written.decode()


def test_on_a_terminal_there_is_a_bar_with_time_left_and_the_cursor_comes_back() -> None:
    shown = on_a_terminal(
        "import time\n"
        "from harness.progress import Bar, output\n"
        "with Bar(output(), 'compiling for t4') as bar:\n"
        "    for n in range(1, 9):\n"
        "        time.sleep(0.15)\n"
        "        bar.moved(n, 8)\n"
        "print('done')\n"
    )
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "compiling for t4" in text and "━" in text
    assert re.search(r"[1-7]/8 0:00:0\d left (0:00:0\d|-:--:--)", text)
    assert "about" not in text
    assert shown.rstrip().endswith("done")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
