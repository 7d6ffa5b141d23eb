"""Owns whether a case may be compared with its reference: same hardware, driver, clock state and protocol.

What is different in the software may be what made a kernel slower, so it is told and refuses nothing: a
compiler, a Python. The anchor's library is another matter: it is the denominator.
"""

from __future__ import annotations

from reports.comparable import IDLE_SETTINGS
from reports.gate.saved import Case, Machine

# Medians of one kernel's clock, a second apart, were seen to differ by up to 12 % under a power limit; ratios
# cancel that. Beyond it, a kernel bound by memory and one bound by arithmetic no longer slow down alike.
CLOCK_SHARE = 0.12
# What a device should never do while it is measured.
BROKEN = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})


def why_not(stored: Case, new: Case) -> str | None:
    """Why the two may not be compared, as a sentence without its end; None where they may."""
    a, b = stored.machine, new.machine
    pairs: list[tuple[str, object, object]] = [
        ("protocol", a.protocol, b.protocol),
        ("target", a.target, b.target),
        ("device", a.device, b.device),
        ("driver", a.driver, b.driver),
        ("clock", stored.clock, new.clock),
        ("anchor", stored.ratio.anchor, new.ratio.anchor),
    ]
    if a.target == "cpu":
        pairs.append(("usable cores", a.cores, b.cores))
    names = sorted((set(a.settings) | set(b.settings)) - IDLE_SETTINGS)
    pairs += [(name.replace("_", " "), a.settings.get(name), b.settings.get(name)) for name in names]
    different = [
        f"{name} {_said(now)}, the reference {_said(before)}" for name, before, now in pairs if before != now
    ]
    if stored.anchor_sha256 != new.anchor_sha256 and stored.ratio.anchor == new.ratio.anchor:
        different.append(f"another version of {new.ratio.anchor}, which is the denominator")
    different += _clocks(stored, new)
    return f"measured with {'; with '.join(different)}" if different else None


def _clocks(stored: Case, new: Case) -> list[str]:
    found = []
    for name, before, now in (
        ("SM clock", stored.clocks.sm_mhz, new.clocks.sm_mhz),
        ("memory clock", stored.clocks.memory_mhz, new.clocks.memory_mhz),
    ):
        if (before is None) != (now is None):
            found.append(f"{name} {_said(now)}, the reference {_said(before)}")
        elif before and now and not 1 / (1 + CLOCK_SHARE) <= now / before <= 1 + CLOCK_SHARE:
            found.append(f"{name} {now:.0f} MHz, the reference {before:.0f} MHz")
    before_held, now_held = BROKEN & set(stored.clocks.held_back), BROKEN & set(new.clocks.held_back)
    if before_held != now_held:
        found.append(f"a clock held back by {_named(now_held)}, the reference by {_named(before_held)}")
    return found


def changed_software(stored: Machine, new: Machine) -> tuple[str, ...]:
    """What differs and refuses nothing: 'numba 0.61.0 -> 0.62.0'."""
    before = {"Python": stored.python, "CUDA": stored.cuda, "attnbench": stored.harness, **stored.libraries}
    now = {"Python": new.python, "CUDA": new.cuda, "attnbench": new.harness, **new.libraries}
    return tuple(
        f"{name} {before.get(name) or 'none'} -> {now.get(name) or 'none'}"
        for name in sorted(before.keys() | now.keys())
        if (before.get(name) or "") != (now.get(name) or "")
    )


def _named(reasons: frozenset[str]) -> str:
    return ", ".join(sorted(reasons)).replace("_", " ") or "nothing"


def _said(value: object) -> str:
    if value in (None, ""):
        return "unknown"
    return f"{value:.0f} MHz" if isinstance(value, float) else f"{value}"
