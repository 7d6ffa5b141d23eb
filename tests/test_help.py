"""Claims about help: every command says what it does, what each option means, how it is called and how it ends."""

from __future__ import annotations

import re
import shlex

import pytest

from harness.exits import MEANINGS
from harness.generate.methods import METHODS
from harness.manual import CODES, EXAMPLES, foot
from tests.command import attnbench
from tests.commands import Command, commands, parse

EVERY = commands()
WIDTH = 76  # of an example in a terminal of 80 columns
each = pytest.mark.parametrize("command", EVERY, ids=lambda c: c.name)


def test_there_are_commands() -> None:
    assert {c.words for c in EVERY} >= {
        (),
        ("eval",),
        ("tl", "check"),
        ("answers", "import"),
        ("tasks", "show"),
    }


@each
def test_a_command_says_what_it_does_in_one_sentence_first(command: Command) -> None:
    first = (command.command.help or "").split("\n\n")[0]
    assert first.endswith((".", "?")), f"{command.name}: begin its help with a sentence"


@each
def test_every_argument_and_option_is_explained(command: Command) -> None:
    for param in command.params:
        assert param.help, f"{command.name}: {param.name} has no help"
        assert not re.search(r"<\w+>|\[[^x]", param.help), (
            f"{command.name}: {param.name}: rich would eat that"
        )


@each
def test_help_ends_with_examples_that_are_right_and_with_exit_codes(command: Command) -> None:
    epilog = command.command.epilog or ""
    assert CODES in epilog, f"{command.name}: give it epilog=harness.manual.foot(...)"
    assert EXAMPLES in epilog and command.examples, f"{command.name}: its help shows no example"
    for line in command.examples:
        assert len(line) <= WIDTH, f"{command.name}: too wide for 80 columns: {line}"
        words = shlex.split(line, comments=True)
        assert words[0] == "attnbench", line
        parse(words[1:])


@each
def test_help_fits_in_80_columns(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import command as called

    monkeypatch.setitem(called.SETTING, "COLUMNS", "80")
    found = attnbench(*command.words, "--help")
    assert found.returncode == 0
    assert max(map(len, found.stdout.splitlines())) <= 80


@each
def test_a_flag_shows_no_value(command: Command) -> None:
    for param in (p for p in command.params if getattr(p, "is_flag", False)):
        assert param.metavar == "", f"{command.name} {param.name}: metavar=harness.options.FLAG"


def test_the_ways_of_asking_that_help_names_are_those_there_are() -> None:
    told = next(p.help for c in EVERY if c.words == ("eval",) for p in c.params if p.name == "method")
    assert all(f"{name}," in told or f"{name}." in told for name in METHODS)


def test_a_foot_names_each_code_once_and_1_only_where_it_has_a_meaning() -> None:
    assert foot("attnbench x", codes=(2, 2)).count("2 wrong input") == 1
    assert "; 1 " not in foot("attnbench x")
    assert "; 1 the program is wrong;" in foot(found="the program is wrong")
    assert set(MEANINGS) == {0, 1, 2, 3, 4, 5, 6, 75, 130}
