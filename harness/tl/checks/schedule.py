"""Owns TL9xx: keys and values of a schedule, features of targets, stages that fit, roles that wait."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from harness.targets import Target
from harness.tl import ir, syntax
from harness.tl.aliases import nearest
from harness.tl.checks.capacity import Demand, choices, shapes
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.problem import TaskLike
from harness.tl.schedule import GRIDS, ROLE_KEYS
from harness.tl.syntax import Level, Pos

Value = int | str
Given = dict[str, tuple[Pos, tuple[Value, ...]]]  # key -> where its statement stands, its values
_ORDERS = ("longest_first", "linear")
_MOST_POINTS = 256


def _whole(low: int, high: int) -> Callable[[Value], bool]:
    return lambda value: isinstance(value, int) and low <= value <= high


def _flag(value: Value) -> bool:
    return value in ("true", "false", "on", "off", 0, 1)


# key -> (what it takes, in words; whether a value is that)
KEYS: dict[str, tuple[str, Callable[[Value], bool]]] = {
    "warps": ("1, 2, 4, 8, 12 or 16", lambda v: v in (1, 2, 4, 8, 12, 16)),
    "stages": ("1 to 8", _whole(1, 8)),
    "persistent": ("true, false, static or dynamic", lambda v: _flag(v) or v in GRIDS[1:]),
    "order": (" or ".join(_ORDERS), lambda v: v in _ORDERS),
    "producer": ("a number of warps, 1 to 4", lambda v: v == "true" or _whole(1, 4)(v)),
    "consumers": ("a number of warpgroups, 1 to 4", _whole(1, 4)),
    "overlap": ("true or false", _flag),
    "pingpong": ("true or false", _flag),
    "heads": ("a number of heads, 0 to 4096", _whole(0, 4096)),
    "registers": (
        "a multiple of 8 from 24 to 240",
        lambda v: isinstance(v, int) and 24 <= v <= 240 and v % 8 == 0,
    ),
    "q_stages": ("1 or 2", _whole(1, 2)),
    "ahead": ("true or false", _flag),
    "carry": ("true or false", _flag),
    "arrivals": ("true or false", _flag),
    "rescale": ("0 to 2", _whole(0, 2)),
    "reuse": ("true or false", _flag),
    "split_kv": ("a number of parts, 1 to 256", _whole(1, 256)),
}


def keys_of(tree: syntax.Program) -> Given:
    """The keys that the text gives, each with the statement that has the last word."""
    return {
        key: (st.pos, values)
        for kernel in tree.kernels
        for st in syntax.statements(kernel.body)
        if isinstance(st, syntax.Schedule)
        for key, values in st.items
    }


def check_schedule(program: ir.Program, tree: syntax.Program, target: Target | None) -> list[Finding]:
    """What is wrong with the keys and values, and with roles; with a target, what it cannot do."""
    found = []
    given = keys_of(tree)
    for key, (pos, values) in given.items():
        if key not in KEYS:
            found.append(
                finding(
                    "TL904",
                    pos,
                    f"no compiler knows the key `{key}`",
                    nearest(key, KEYS) or f"there are {', '.join(KEYS)}",
                )
            )
            continue
        takes, right = KEYS[key]
        wrong = [str(v) for v in values if not right(v)]
        if wrong:
            found.append(
                finding(
                    "TL904",
                    pos,
                    f"`{key}` takes {takes}, not {', '.join(wrong)}",
                    f"write {key} with {takes}",
                )
            )
        elif target is not None:
            found += _feature(key, values, pos, target)
    return found + _waits(program, given)


def _feature(key: str, values: tuple[Value, ...], pos: Pos, target: Target) -> list[Finding]:
    has = target.capability
    if has is None:
        return []
    on = [v for v in values if v not in ("false", "off", 0)]
    if key == "stages" and has < (8, 0):
        more = [v for v in values if isinstance(v, int) and v > 1]
        if more:
            severity = Severity.WARNING if len(more) == len(values) else Severity.NOTE
            words = ", ".join(map(str, more))
            text = f"{target.name} ({target.arch}) has no asynchronous copy for stages {words}"
            return [finding("TL901", pos, text, "stages 1, or a target from sm_80 on", severity)]
    if key in ROLE_KEYS and has < (9, 0) and on:
        return [
            finding(
                "TL901",
                pos,
                f"{target.name} ({target.arch}) has no warps with roles, which `{key}` asks for",
                f"leave `{key}` out, or take a target from sm_90 on",
            )
        ]
    return []


def _waits(program: ir.Program, given: Given) -> list[Finding]:
    """TL903: a producer that has nothing to send, or that would wait for those who wait for it."""
    roles = [
        pos
        for key, (pos, values) in given.items()
        if key in ("producer", "consumers") and values[:1] != ("false",)
    ]
    stages = [v for v in given.get("stages", (None, ()))[1] if isinstance(v, int)]
    found = []
    sends = False
    for kernel in program.kernels:
        for loop in (n for n in ir.nodes(kernel.body) if isinstance(n, ir.For)):
            inside = list(ir.nodes(loop.body))
            loads = [n for n in inside if isinstance(n, ir.Load)]
            sends = sends or bool(loads)
            stored = {n.matrix.tensor for n in inside if isinstance(n, ir.Store)}
            for load in loads:
                pos = load.source.pos if load.source is not None else Pos(1, 1)
                source = next(
                    (m for m in (load.matrix, load.via) if m is not None and m.tensor in stored), None
                )
                if source is not None and (roles or (stages and min(stages) > 1)):
                    found.append(
                        finding(
                            "TL903",
                            pos,
                            f"the copy of `{load.tile.name}` is to run ahead, but `{source.name}` is "
                            "stored in the same loop: it waits for what waits for it",
                            "stages 1 and no producer, or two loops",
                        )
                    )
                writers = [
                    n for n in inside if load.tile in ir.writes(n) and not isinstance(n, ir.Load | ir.Init)
                ]
                if roles and writers and load.tile.level is Level.SHARED:
                    at = writers[0].source
                    found.append(
                        finding(
                            "TL903",
                            at.pos if at is not None else pos,
                            f"`{load.tile.name}` is filled by the producer and "
                            "written by its consumers: each would wait for the other",
                            "compute into another tile",
                        )
                    )
    if roles and not sends and any(k.body for k in program.kernels):
        found.append(
            finding(
                "TL903",
                roles[0],
                "no loop copies anything: the consumers would wait for a producer with nothing to send",
                "leave the roles out",
            )
        )
    return list(dict.fromkeys(found))


def check_stages(
    program: ir.Program, task: TaskLike, tree: syntax.Program, target: Target, dtype: str
) -> list[Finding]:
    """TL902: numbers of stages with which no tile choice fits on the target, though one stage would."""
    limit = target.smem_per_block
    wanted = [v for v in dict(program.schedule).get("stages", ()) if isinstance(v, int) and v > 1]
    if limit is None or not wanted:
        return []
    demand = Demand(program, dtype)
    least: dict[int, str] = {}
    fits: set[int] = set()
    try:
        for sizes in shapes(program, task):
            for choice in itertools.islice(choices(program, ()), _MOST_POINTS):
                for stages in (1, *wanted):
                    load = demand.of({**sizes, **choice, "stages": stages})
                    if load.shared_bytes <= limit:
                        fits.add(stages)
                    least.setdefault(stages, load.words)
    except (KeyError, ArithmeticError, ValueError, TypeError):
        return []
    if 1 not in fits:
        return []
    pos, _ = keys_of(tree).get("stages", (Pos(1, 1), ()))
    others = [v for v in dict(program.schedule).get("stages", ()) if v in fits or v == 1]
    found = []
    for stages in wanted:
        if stages not in fits:
            severity = Severity.NOTE if others else Severity.ERROR
            text = (
                f"{stages} stages fit in the {limit / 1024:g} KB of {target.name} with no tile choice: "
                f"{least[stages]}"
            )
            found.append(finding("TL902", pos, text, severity=severity))
    return found
