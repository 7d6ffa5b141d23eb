"""Saved measurements for tests of the gate, written as pytest-benchmark writes them; and simulated sessions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.measure.statistics import Interval, bootstrap_median, paired_ratios
from harness.records import Ratio
from reports.gate.saved import EXTRA, Case, ClockState, Machine, OldSelf, Saved, read_saved

CPU = Machine(
    target="cpu", device="AMD EPYC", cores=2, python="3.11.9", harness="0.1.0", libraries={"numba": "0.61.0"}
)
GPU = Machine(
    target="h100", device="NVIDIA H100 80GB HBM3", driver="580.95", cuda="13.0",
    settings={"power_limit": "700 W", "max_sm_clock": "1980 MHz", "persistence_mode": "on"},
)  # fmt: skip
WORKLOAD = "b1-h4-n512-d64-fp32"
OWN, ANCHOR = "mha_causal/" + WORKLOAD + "/mine", "mha_causal/" + WORKLOAD + "/sdpa-flash"


def ratio(median: float, half_width: float, pairs: int = 40) -> Ratio:
    return Ratio(
        anchor="sdpa-flash", median=median, low=median / (1 + half_width), high=median * (1 + half_width),
        pairs=pairs, stopped="time_cap",
    )  # fmt: skip


def case(
    speed: float = 1.0, half_width: float = 0.01, noise: float = 0.01, kernel: str = "mine", **changes: Any
) -> Case:
    """A kernel's case; `speed` over the anchor. One of another speed has other sources."""
    kind = "baseline" if kernel in ("sdpa-flash", "naive") else "candidate"
    sha256 = "a" * 64 if speed == 1.0 else hashlib.sha256(str(speed).encode()).hexdigest()
    found = Case(
        task="mha_causal", workload=WORKLOAD, kernel=kernel, kind=kind, sha256=sha256, anchor_sha256="b" * 64,
        clock="wall", time_ms=2.0, ratio=ratio(speed, half_width), noise=ratio(1.0, noise), machine=CPU,
        source="kernels/mine/attention.py" if kernel == "mine" else "",
    )  # fmt: skip
    return found.model_copy(update=changes)


def beside(
    speed: float = 1.0, half_width: float = 0.01, noise: float = 0.01, *, stored: float = 1.0, **changes: Any
) -> Case:
    """A changed kernel in one session with its old self of the reference, `speed` times as fast as that.

    `stored`: what the day makes of both over the anchor.
    """
    old = OldSelf(
        sha256=case().sha256, time_ms=2.0, speed=ratio(speed, half_width), anchored=ratio(stored, half_width)
    )
    return case(stored * speed, half_width, noise, **{"sha256": "e" * 64, "old": old, **changes})


def anchor(**changes: Any) -> Case:
    return case(half_width=1e-9, kernel="sdpa-flash", **changes)


def clocks(sm_mhz: float, *held_back: str, memory_mhz: float = 2619.0) -> ClockState:
    return ClockState(sm_mhz=sm_mhz, memory_mhz=memory_mhz, held_back=held_back)


def content(cases: Iterable[Case], failed: Mapping[str, str] | None = None, **untimed: Any) -> dict[str, Any]:
    """What pytest-benchmark saves."""
    return {
        "machine_info": CPU.model_dump(mode="json"),
        "commit_info": {"id": "c0ffee"},
        "benchmarks": [
            {"name": f"test_attention[{c.id}]", "stats": {"median": c.time_ms / 1e3, "ops": 1.0},
             "extra_info": {EXTRA: c.model_dump(mode="json")}}
            for c in cases
        ],
        "datetime": "2026-11-26T04:00:00+00:00",
        "version": "5.2.3",
        EXTRA: {"failed": dict(failed or {}), **untimed},
    }  # fmt: skip


def write(path: Path, cases: Iterable[Case], failed: Mapping[str, str] | None = None, **untimed: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(cases, failed, **untimed)))
    return path


def saved(
    tmp_path: Path, name: str, cases: Iterable[Case], failed: Mapping[str, str] | None = None, **untimed: Any
) -> Saved:
    return read_saved(write(tmp_path / f"{name}.json", cases, failed, **untimed))


@dataclass(frozen=True)
class Weather:
    """How a machine behaves: shares of time."""

    jitter: float = 0.02  # of a block, log-normal
    drift: float = 0.05  # of the speed over a session, either way
    walk: float = 0.003  # of the speed from block to block
    interrupted: float = 0.0  # share of blocks that something holds up
    held_up: float = 2.0  # times as long, then
    process: float = 0.003  # of a kernel's time from one process to the next
    tilt: float = 0.0  # of what a day does to kernels and not to the anchor, either way


def session(rng: np.random.Generator, weather: Weather, own: float, day: float, rounds: int) -> Case:
    """One simulated session in the order D C A | A C D: `own` and the anchor's 1.0 are times, `day` the speed."""
    process = {name: rng.normal(0, weather.process) for name in "CA"}
    process["D"] = process["A"]
    blocks = np.zeros((rounds, 6))
    slope, state = rng.uniform(-weather.drift, weather.drift), 0.0
    for n in range(rounds):
        for place, name in enumerate("DCAACD"):
            state += rng.normal(0, weather.walk)
            log = (
                state + slope * (6 * n + place) / (6 * rounds) + process[name] + rng.normal(0, weather.jitter)
            )
            hold = weather.held_up if rng.random() < weather.interrupted else 1.0
            blocks[n, place] = day * (own if name == "C" else 1.0) * np.exp(log) * hold
    found = {a: bootstrap_median(paired_ratios(blocks[:, at], blocks[:, [2, 3]])) for a, at in PLACES.items()}
    update = {"time_ms": day * own, "ratio": _ratio(found["C"]), "noise": _ratio(found["D"])}
    return case().model_copy(update=update)


def pair_session(rng: np.random.Generator, weather: Weather, slowdown: float, rounds: int) -> Case:
    """One simulated session in the order D O C A | A C O D: a kernel beside its old self O, `slowdown` times as
    slow. The day makes both faster or slower than the anchor, by up to `tilt`."""
    process = {name: rng.normal(0, weather.process) for name in "OCA"}
    process["D"] = process["A"]
    tilt = rng.uniform(-weather.tilt, weather.tilt)
    own = {"O": 1.3 * (1 + tilt), "C": 1.3 * (1 + tilt) * slowdown, "A": 1.0, "D": 1.0}
    blocks = np.zeros((rounds, 8))
    slope, state = rng.uniform(-weather.drift, weather.drift), 0.0
    for n in range(rounds):
        for place, name in enumerate("DOCAACOD"):
            state += rng.normal(0, weather.walk)
            log = state + slope * (8 * n + place) / (8 * rounds) + process[name]
            hold = weather.held_up if rng.random() < weather.interrupted else 1.0
            blocks[n, place] = own[name] * np.exp(log + rng.normal(0, weather.jitter)) * hold
    anchor, old, new = blocks[:, [3, 4]], blocks[:, [1, 6]], blocks[:, [2, 5]]

    def over(own: np.ndarray, other: np.ndarray) -> Ratio:
        return _ratio(bootstrap_median(paired_ratios(own, other)))

    told = OldSelf(sha256=case().sha256, time_ms=1.0, speed=over(new, old), anchored=over(old, anchor))
    update = {"ratio": over(new, anchor), "noise": over(blocks[:, [0, 7]], anchor), "old": told}
    return case().model_copy(update={**update, "sha256": "e" * 64})


PLACES = {"C": [1, 4], "D": [0, 5]}


def _ratio(i: Interval) -> Ratio:
    return Ratio(anchor="sdpa-flash", median=i.median, low=i.low, high=i.high, pairs=i.n, stopped="time_cap")
