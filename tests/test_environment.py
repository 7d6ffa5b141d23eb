"""Claims about the environment record: what it says, and what it must never give away."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import baselines
import harness.environment as environment
from baselines import Library
from harness.environment import (
    DECISIVE,
    cpu_model,
    describe,
    harness_digest,
    harness_version,
    usable_cores,
    without_paths,
)
from harness.runs import Environment
from harness.targets import TARGETS


@dataclass
class FakeBaseline:
    found: Library

    def library(self) -> Library:
        return self.found


@pytest.fixture
def two_baselines(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "here": FakeBaseline(Library("torch", "2")),
        "away": FakeBaseline(Library("fa", None, f"cannot load {Path.home()}/lib/fa.so", "pip install fa")),
    }
    monkeypatch.setattr(baselines, "BASELINES", fakes)


@pytest.fixture
def described(two_baselines: None) -> Environment:
    return describe(TARGETS["cpu"], torch.device("cpu"), sandbox="bubblewrap")


def test_a_cpu_run_is_described_by_what_decides_its_numbers(described: Environment) -> None:
    assert described.target == "cpu"
    assert described.device == described.cpu != ""
    assert described.cores == len(os.sched_getaffinity(0))
    assert described.python == platform.python_version()
    assert described.libraries["torch"] == torch.__version__
    assert described.gpu == {} and described.driver == ""
    assert described.sandbox == "bubblewrap"
    assert described.sources == harness_digest() != ""


def test_baselines_are_usable_or_say_why_not(described: Environment) -> None:
    assert described.baselines == {"here": "usable", "away": "cannot load fa.so"}


def test_nothing_private_is_written(two_baselines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    names = os.uname()
    private = os.uname_result((names.sysname, "secret-host", "1-secret-host", names.version, names.machine))
    monkeypatch.setattr(os, "uname", lambda: private)
    monkeypatch.setattr(platform, "_uname_cache", None)
    monkeypatch.setattr(platform, "_platform_cache", {})
    for variable in ("USER", "LOGNAME", "HOME", "HOSTNAME"):
        monkeypatch.setenv(variable, "/home/secret-user")
    assert platform.node() == "secret-host"
    text = describe(TARGETS["cpu"], torch.device("cpu")).model_dump_json()
    assert "secret" not in text
    assert str(Path(environment.__file__).parents[1]) not in text


def test_the_same_machine_has_the_same_digest(two_baselines: None) -> None:
    cpu = torch.device("cpu")
    assert describe(TARGETS["cpu"], cpu).digest == describe(TARGETS["cpu"], cpu).digest


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("cannot load /home/me/lib/libfa.so.2: no file", "cannot load libfa.so.2: no file"),
        ("No module named 'flash_attn'", "No module named 'flash_attn'"),
        ("in:/usr/lib64/libcuda.so", "in:libcuda.so"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        (f"{Path.home()} is full", "~ is full"),
        ("needs sm_80, found 7.5", "needs sm_80, found 7.5"),
        ("(/root/a.so)", "(a.so)"),
    ],
)
def test_folders_are_removed_from_reasons(text: str, kept: str) -> None:
    assert without_paths(text) == kept


def test_cpu_model_is_read_and_falls_back_to_the_architecture(tmp_path: Path) -> None:
    named, unnamed = tmp_path / "named", tmp_path / "unnamed"
    named.write_text("processor\t: 0\nmodel name\t: Xeon 8480C\nmodel name\t: other\n")
    unnamed.write_text("processor\t: 0\n")
    assert cpu_model(named) == "Xeon 8480C"
    assert cpu_model(unnamed) == cpu_model(tmp_path / "missing") == platform.machine()


def test_cores_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(3)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert usable_cores() == 3


def test_version_is_the_distributions_or_says_source(monkeypatch: pytest.MonkeyPatch) -> None:
    harness_version.cache_clear()
    monkeypatch.setattr(environment, "DISTRIBUTION", "attnbench-that-is-not-installed")
    assert harness_version() == "0.1.0+source"
    harness_version.cache_clear()
    monkeypatch.setattr(environment, "DISTRIBUTION", "numpy")
    assert harness_version() == importlib.metadata.version("numpy")
    harness_version.cache_clear()


def test_digest_follows_the_code_that_decides_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(environment.__file__).parent
    copy = tmp_path / "harness"
    for name in ("harness", "baselines", "tasks"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source.parent / name, tmp_path / name, ignore=skipped)
    monkeypatch.setattr(environment, "__file__", str(copy / "environment.py"))

    def digest() -> str:
        harness_digest.cache_clear()
        return harness_digest()

    try:
        found = [digest()]
        for name in ("harness/records.py", "harness/store.py", "tasks/mha.py", "harness/measure/x.pyc"):
            (tmp_path / name).write_text("")
        assert [digest()] == found
        for name in DECISIVE:
            one = tmp_path / name
            (one if one.is_file() else next(one.glob("[a-z]*.py"))).write_text("# changed")
            found.append(digest())
        assert len(set(found)) == 1 + len(DECISIVE)
        assert all((tmp_path / name).exists() for name in DECISIVE)
    finally:
        harness_digest.cache_clear()
