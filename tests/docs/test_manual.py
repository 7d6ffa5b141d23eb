"""The page of commands is what the commands say themselves. UPDATE_GOLDEN=1 writes it again."""

from __future__ import annotations

import os

from harness.exits import MEANINGS
from tests.commands import commands
from tests.docs.manual import PAGE, page
from tests.docs.pages import plain, rows


def test_the_page_of_commands_is_their_help() -> None:
    written = PAGE.read_text(encoding="utf-8")
    expected = page(written)
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(expected, encoding="utf-8")
        return
    assert written == expected, (
        "a command's help has changed: UPDATE_GOLDEN=1 pytest tests/docs/test_manual.py writes docs/commands.md "
        "again; read the difference before you commit it"
    )


def test_every_command_has_its_section() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"# {c.name}\n" in text for c in commands())


def test_the_table_of_exit_codes_has_every_code_with_its_meaning() -> None:
    told = {int(code): meaning for code, meaning, _ in rows("docs/commands.md", "code")}
    assert {code: plain(meaning) for code, meaning in told.items()} == dict(MEANINGS)
