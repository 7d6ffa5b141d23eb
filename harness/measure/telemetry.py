"""Owns what NVML says of a device: clocks, power, heat, throttling; reads only, never changes a setting.

Runs in the judge's process. Without NVML or without the device, `open_telemetry` gives a
source whose samples are empty and whose `reason` says why, so no caller has a special case.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from harness.records import Telemetry

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h, nvmlClocksEventReason*), without bit 0: an idle
# GPU is not held back by anything.
THROTTLE_REASONS: Mapping[int, str] = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
_IDLE = 0x001

Answer = TypeVar("Answer")


class TelemetrySource(Protocol):
    """Something that can be asked how a device is doing."""

    reason: str  # why samples are empty; "" where a device answers

    def sample(self) -> Telemetry:
        """The device now; a field it does not tell is None."""
        ...

    def driver(self) -> str:
        """The driver's version, or ""."""
        ...

    def facts(self) -> dict[str, str]:
        """Settings of the device as found, by name with units; only those it tells."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Closing:
    """A context manager that closes itself."""

    def close(self) -> None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NoTelemetry(_Closing):
    """The source for a machine without NVML or without the device."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def sample(self) -> Telemetry:
        return Telemetry()

    def driver(self) -> str:
        return ""

    def facts(self) -> dict[str, str]:
        return {}


class NvmlTelemetry(_Closing):
    """One device seen through an initialised `pynvml`; `close` shuts NVML down."""

    reason = ""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def sample(self) -> Telemetry:
        """The device now, in 0.2 ms on an H100.

        Power is the driver's average over about a second, so it lags behind a short block.
        """
        nvml, handle = self._nvml, self._handle
        bits = self._ask(self._event_reasons)
        return Telemetry(
            sm_mhz=self._ask(lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))),
            memory_mhz=self._ask(lambda: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))),
            power_w=self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            temperature_c=self._ask(
                lambda: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            throttle=() if bits is None else throttle_names(bits),
        )

    def driver(self) -> str:
        return self._ask(lambda: _text(self._nvml.nvmlSystemGetDriverVersion())) or ""

    def facts(self) -> dict[str, str]:
        nvml, handle = self._nvml, self._handle
        questions: dict[str, Callable[[], str]] = {
            "name": lambda: _text(nvml.nvmlDeviceGetName(handle)),
            "power_limit": lambda: f"{nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000:g} W",
            "max_sm_clock": lambda: f"{nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)} MHz",
            "max_memory_clock": lambda: f"{nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)} MHz",
            "memory": lambda: f"{nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**20:.0f} MiB",
            "ecc": lambda: _on_off(nvml.nvmlDeviceGetEccMode(handle)[0]),
            "persistence_mode": lambda: _on_off(nvml.nvmlDeviceGetPersistenceMode(handle)),
            "mig": lambda: _on_off(nvml.nvmlDeviceGetMigMode(handle)[0]),
            "compute_mode": lambda: str(nvml.nvmlDeviceGetComputeMode(handle)),
        }
        answers = {name: self._ask(question) for name, question in questions.items()}
        return {name: answer for name, answer in answers.items() if answer is not None}

    def close(self) -> None:
        self._ask(self._nvml.nvmlShutdown)

    def _event_reasons(self) -> int:
        # "Throttle" was renamed to "event" in driver 535's NVML; a host may carry either pynvml.
        ask = getattr(self._nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        if ask is None:
            ask = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        return int(ask(self._handle))

    def _ask(self, question: Callable[[], Answer]) -> Answer | None:
        """The answer, or None where this device, driver or pynvml does not know the question."""
        try:
            return question()
        except (self._nvml.NVMLError, AttributeError):
            return None


def throttle_names(bits: int) -> tuple[str, ...]:
    """Names of the reasons that hold the clock down, lowest bit first; an idle GPU is not one.

    A bit this table does not know is named by its value, so that nothing is dropped silently.
    """
    bits &= ~_IDLE
    set_bits = (1 << position for position in range(bits.bit_length()) if bits >> position & 1)
    return tuple(THROTTLE_REASONS.get(bit, f"reason_{bit:#x}") for bit in set_bits)


def open_telemetry(device_index: int | None) -> TelemetrySource:
    """The source for a CUDA device by its index in this process; None means there is no GPU.

    CUDA_VISIBLE_DEVICES renumbers devices for CUDA but not for NVML, so it is honoured here.
    """
    if device_index is None:
        return NoTelemetry("no GPU in use")
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return NoTelemetry("pynvml is not installed; pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return NoTelemetry(f"NVML does not start: {error}")
    try:
        return NvmlTelemetry(nvml, _handle(nvml, device_index))
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        return NoTelemetry(f"NVML does not know device {device_index}: {error}")


def machine_name(device_index: int) -> str:
    """What the machine calls the CUDA device of this index: an index of its own or a UUID."""
    listed = [x.strip() for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x.strip()]
    return listed[device_index] if device_index < len(listed) else str(device_index)


def _handle(nvml: Any, device_index: int) -> Any:
    name = machine_name(device_index)
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _on_off(value: int) -> str:
    return "on" if value else "off"
