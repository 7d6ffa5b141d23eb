"""Claims about the targets: which device is which, and that the table holds together."""

from __future__ import annotations

import pytest

from harness.targets import TARGETS, TargetError, find_target, target_of_device
from tasks.spec import DTYPES


@pytest.mark.parametrize(
    ("device", "target"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA T4", "t4"),
        ("Quadro RTX 8000", "rtx8000"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_device_is_recognised_by_its_own_name(device: str, target: str) -> None:
    found = target_of_device(device)
    assert found is not None and found.name == target


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 4090",
        "NVIDIA T400 4GB",
        "NVIDIA RTX A1000",
        "NVIDIA GH200 480GB",
        "Quadro RTX 6000",
        "NVIDIA L40",
        "AMD Instinct MI300X",
        "",
    ],
)
def test_a_device_the_table_does_not_know_is_none(device: str) -> None:
    assert target_of_device(device) is None


def test_an_unknown_target_is_answered_with_the_list() -> None:
    with pytest.raises(TargetError, match="unknown target 'b200'") as caught:
        find_target("b200")
    assert all(name in str(caught.value) for name in TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_found_under_its_name_and_holds_together(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    assert target.l2_bytes > 0
    assert target.is_gpu == (name != "cpu")
    if target.is_gpu:
        assert target.bandwidth_gbs and target.sm_count and target.smem_per_block
        assert target.device_names and target.peak_tflops["fp16"] > target.peak_tflops["fp32"]
    else:
        assert target.capability is None
        assert not target.peak_tflops and target.bandwidth_gbs is None


def test_capability_is_split_from_the_architecture() -> None:
    assert [TARGETS[n].capability for n in ("t4", "a100", "l40s", "h100")] == [(7, 5), (8, 0), (8, 9), (9, 0)]


def test_turing_has_no_bf16_and_the_cpu_takes_every_dtype() -> None:
    assert not TARGETS["t4"].supports("bf16")
    assert TARGETS["a100"].supports("bf16")
    assert all(TARGETS["cpu"].supports(dtype) for dtype in DTYPES)
