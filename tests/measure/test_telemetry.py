"""Claims about telemetry, against a fake NVML that answers, refuses or is not there."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.measure.telemetry import NoTelemetry, open_telemetry, throttle_names
from harness.records import Telemetry


class FakeNVMLError(Exception):
    pass


class FakeNvml:
    """Looks like pynvml; `mute` names functions the device does not support, `calls` says what was asked."""

    NVMLError = FakeNVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, mute: tuple[str, ...] = (), absent: tuple[str, ...] = ()) -> None:
        self.mute, self.absent = mute, absent
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": b"580.82.07",
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetHandleByUUID": "handle",
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetClockInfo": 1755,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetPowerUsage": 512_345,
            "nvmlDeviceGetTemperature": 54,
            "nvmlDeviceGetCurrentClocksEventReasons": 0x004 | 0x001,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x040,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80 * 2**30),
            "nvmlDeviceGetEccMode": [1, 1],
            "nvmlDeviceGetPersistenceMode": 1,
            "nvmlDeviceGetMigMode": [0, 0],
            "nvmlDeviceGetComputeMode": 0,
        }

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or name in self.absent:
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            if name in self.mute:
                raise FakeNVMLError("Not Supported")
            return self.answers[name]

        return call


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(fake: FakeNvml | None) -> FakeNvml | None:
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # None: import raises ImportError
        return fake

    return put


def test_a_sample_has_units(install: Any) -> None:
    install(FakeNvml())
    with open_telemetry(0) as source:
        assert source.reason == ""
        assert source.sample() == Telemetry(
            sm_mhz=1755, memory_mhz=1755, power_w=512.345, temperature_c=54, throttle=("sw_power_cap",)
        )


SAMPLED: dict[str, dict[str, Any]] = {
    "nvmlDeviceGetClockInfo": {"sm_mhz": None, "memory_mhz": None},
    "nvmlDeviceGetPowerUsage": {"power_w": None},
    "nvmlDeviceGetTemperature": {"temperature_c": None},
    "nvmlDeviceGetCurrentClocksEventReasons": {"throttle": ()},
}


@pytest.mark.parametrize("function", SAMPLED)
def test_what_the_device_does_not_say_is_none_and_the_rest_stands(install: Any, function: str) -> None:
    install(FakeNvml())
    whole = open_telemetry(0).sample()
    install(FakeNvml(mute=(function,)))
    assert open_telemetry(0).sample() == whole.model_copy(update=SAMPLED[function])


def test_an_older_pynvml_is_asked_by_the_older_name(install: Any) -> None:
    install(FakeNvml(absent=("nvmlDeviceGetCurrentClocksEventReasons",)))
    assert open_telemetry(0).sample().throttle == ("hw_thermal_slowdown",)


def test_reasons_are_named_idle_is_none_and_unknown_bits_are_kept() -> None:
    assert throttle_names(0) == throttle_names(0x001) == ()
    assert throttle_names(0x0C9) == ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
    assert throttle_names(0x1004) == ("sw_power_cap", "reason_0x1000")


def test_throttle_table_agrees_with_the_installed_nvml() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name, expected in (
        ("SwPowerCap", "sw_power_cap"),
        ("HwSlowdown", "hw_slowdown"),
        ("SyncBoost", "sync_boost"),
        ("SwThermalSlowdown", "sw_thermal_slowdown"),
        ("HwThermalSlowdown", "hw_thermal_slowdown"),
        ("HwPowerBrakeSlowdown", "hw_power_brake_slowdown"),
        ("DisplayClockSetting", "display_clock_setting"),
        ("ApplicationsClocksSetting", "applications_clocks_setting"),
    ):
        bit = getattr(pynvml, f"nvmlClocksEventReason{name}", None)
        if bit is None:
            bit = getattr(pynvml, f"nvmlClocksThrottleReason{name}")
        assert throttle_names(bit) == (expected,)


def test_only_questions_are_asked_and_nvml_is_shut_down(install: Any) -> None:
    fake = FakeNvml()
    install(fake)
    with open_telemetry(0) as source:
        source.sample()
        source.facts()
        source.driver()
    asked = [name for name, _ in fake.calls]
    assert asked[0] == "nvmlInit" and asked[-1] == "nvmlShutdown"
    assert all("Get" in name for name in asked[1:-1])


def test_facts_are_as_found(install: Any) -> None:
    install(FakeNvml(mute=("nvmlDeviceGetEccMode",)))
    source = open_telemetry(0)
    assert source.driver() == "580.82.07"
    assert source.facts() == {
        "name": "NVIDIA H100 80GB HBM3",
        "power_limit": "700 W",
        "max_sm_clock": "1980 MHz",
        "max_memory_clock": "1980 MHz",
        "memory": "81920 MiB",
        "persistence_mode": "on",
        "mig": "off",
        "compute_mode": "0",
    }


@pytest.mark.parametrize(
    ("visible", "index", "asked"),
    [
        (None, 1, ("nvmlDeviceGetHandleByIndex", (1,))),
        ("3,2", 1, ("nvmlDeviceGetHandleByIndex", (2,))),
        ("GPU-8f1c", 0, ("nvmlDeviceGetHandleByUUID", ("GPU-8f1c",))),
    ],
)
def test_the_device_cuda_sees_is_the_one_asked(
    install: Any, monkeypatch: pytest.MonkeyPatch, visible: str | None, index: int, asked: Any
) -> None:
    fake = FakeNvml()
    install(fake)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    open_telemetry(index)
    assert asked in fake.calls


@pytest.mark.parametrize(
    ("fake", "index", "reason"),
    [
        (FakeNvml(), None, "no GPU"),
        (None, 0, "nvidia-ml-py"),
        (FakeNvml(mute=("nvmlInit",)), 0, "does not start"),
        (FakeNvml(mute=("nvmlDeviceGetHandleByIndex",)), 7, "device 7"),
    ],
)
def test_without_nvml_or_device_samples_are_empty_and_say_why(
    install: Any, fake: FakeNvml | None, index: int | None, reason: str
) -> None:
    install(fake)
    with open_telemetry(index) as source:
        assert isinstance(source, NoTelemetry)
        assert reason in source.reason
        assert source.sample() == Telemetry()
        assert source.facts() == {} and source.driver() == ""


@pytest.mark.gpu
def test_a_real_device_tells_its_clocks() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with open_telemetry(0) as source:
        assert source.reason == ""
        sample = source.sample()
    assert sample.sm_mhz and sample.power_w and sample.temperature_c
