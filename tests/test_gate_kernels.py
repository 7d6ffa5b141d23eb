"""Sources of kernels: kept by content, whole or not at all, and never used where they are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.build.manifest import read_candidate
from harness.gate_kernels import Damaged, Kernels


@pytest.fixture
def manifest(tmp_path):
    folder = tmp_path / "mine"
    (folder / "inner").mkdir(parents=True)
    (folder / "candidate.toml").write_text('name = "mine"\ntask = "mha"\nbackend = "torch"\n')
    (folder / "attention.py").write_bytes(b"def attention(): ...\r\n# \xc3\xa4")
    (folder / "inner" / "part.py").write_text("")
    return read_candidate(folder)


@pytest.fixture
def kernels(tmp_path):
    return Kernels(tmp_path / ".benchmarks")


def test_what_is_kept_comes_back_as_it_was(kernels, manifest):
    assert kernels.find(manifest.sha256) is None
    place = kernels.keep(manifest)
    assert place == kernels.find(manifest.sha256) == kernels.folder / manifest.sha256
    found = read_candidate(place)
    assert (found.files, found.sha256, found.name) == (manifest.files, manifest.sha256, "mine")


def test_the_same_sources_are_kept_once(kernels, manifest):
    before = (kernels.keep(manifest) / "attention.py").stat()
    assert (kernels.keep(manifest) / "attention.py").stat().st_ino == before.st_ino
    assert [p.name for p in kernels.folder.iterdir()] == [manifest.sha256]


@pytest.mark.parametrize("spoil", [
    lambda place: (place / "attention.py").write_text("def attention(): slow()"),
    lambda place: (place / "attention.py").unlink(),
    lambda place: (place / "inner" / "part.py").unlink(),
    lambda place: (place / "more.py").write_text(""),
    lambda place: (place / "candidate.toml").write_text("torn"),
])  # fmt: skip
def test_a_damaged_copy_is_said_and_put_right_when_the_kernel_is_kept_again(kernels, manifest, spoil):
    place = kernels.keep(manifest)
    spoil(place)
    with pytest.raises(Damaged, match=f"{manifest.sha256} is damaged and not used"):
        kernels.find(manifest.sha256)
    kernels.keep(manifest)
    assert kernels.find(manifest.sha256) == place
    assert len(list(kernels.folder.iterdir())) == 1


def test_a_copy_that_could_not_be_finished_is_not_there(kernels, manifest, monkeypatch):
    def full(handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        kernels.keep(manifest)
    assert kernels.find(manifest.sha256) is None
    assert not list(kernels.folder.iterdir())


def test_another_gate_that_was_faster_is_no_error(kernels, manifest, monkeypatch):
    rename = Path.rename

    def beaten(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        kernels.keep(manifest)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    kernels.keep(manifest)
    assert kernels.find(manifest.sha256) is not None
    assert len(list(kernels.folder.iterdir())) == 1
