"""Claims about the device's lock: one job on a GPU at a time, whatever CUDA calls the GPU."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
import torch

from harness.bench import MachineError, _lock_device, can_stand_in
from harness.targets import find_target


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("visible", "index", "refused"),
    [
        ((None, None), (0, 0), True),
        ((None, None), (0, 1), False),
        (("0", "1"), (0, 0), False),  # both are device 0 to their own process
        (("1,0", "0"), (1, 0), True),
        (("GPU-8f1c", "GPU-8f1c"), (0, 0), True),
    ],
)
def test_a_second_job_is_refused_on_the_same_gpu_only(
    monkeypatch: pytest.MonkeyPatch,
    visible: tuple[str | None, str | None],
    index: tuple[int, int],
    refused: bool,
) -> None:
    with contextlib.ExitStack() as held:
        for n in (0, 1):
            if visible[n] is None:
                monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            else:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(visible[n]))
            device = torch.device("cuda", index[n])
            if n and refused:
                with pytest.raises(MachineError, match="another attnbench is measuring"):
                    _lock_device(device)
            else:
                held.enter_context(_lock_device(device))


def test_gpus_that_are_not_shown_do_not_split_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with _lock_device(torch.device("cpu")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        with pytest.raises(MachineError):
            _lock_device(torch.device("cpu"))


@pytest.mark.parametrize(
    ("stand_in", "target", "can"),
    [
        ("h100", "t4", True),
        ("h100", "h100", True),
        ("a100", "h100", False),
        ("h100", "cpu", False),
        ("cpu", "t4", False),
    ],
)
def test_ptx_runs_on_its_own_architecture_and_on_newer_ones(stand_in: str, target: str, can: bool) -> None:
    assert can_stand_in(find_target(stand_in), find_target(target)) is can
