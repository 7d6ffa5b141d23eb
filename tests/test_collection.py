"""Every test that is written is run: pytest leaves out folders by their names, `build` among them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import pytest


def test_no_folder_of_tests_is_left_out(pytestconfig: pytest.Config) -> None:
    patterns = [p for p in pytestconfig.getini("norecursedirs") if p != "__pycache__"]
    folders = {f.parent.name for f in Path(__file__).parent.rglob("test_*.py")}
    assert "build" in folders
    assert not [(f, p) for f in folders for p in patterns if fnmatch(f, p)]
