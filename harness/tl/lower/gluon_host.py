"""Owns the host side of a Gluon candidate: `attention`, which chooses, and launches or falls back."""

from __future__ import annotations

from collections.abc import Sequence

from harness.tl import ir
from harness.tl.lower.gluon_host_prelude import HOST, KEYS, ROUNDS
from harness.tl.lower.gluon_kernel import Kernel
from harness.tl.lower.gluon_reach import reaches
from harness.tl.lower.gluon_rounds import Rounds
from harness.tl.lower.host import declaration, largest, python_text, sizes
from harness.tl.lower.python_layout import call, expression, statement
from harness.tl.lower.triton_memory import Access
from harness.tl.problem import SIZES, TaskLike, symbols


def host_side(program: ir.Program, task: TaskLike, kernels: Sequence[Kernel]) -> str:
    """Source of `attention` and what it calls."""
    names = [name for name, _ in program.parameters]
    rounds = [(k, r) for k in kernels for r in k.text.loops]
    functions = _keys(program) + "".join(_rounds(k, r, names, task) for k, r in rounds)
    lines = [line for kernel in kernels for line in _launch(kernel, program, task)]
    return (
        HOST
        + functions
        + "\n\n"
        + "\n".join([*declaration(task), *_opening(program, task, kernels), *lines])
        + "\n"
    )


def _opening(program: ir.Program, task: TaskLike, kernels: Sequence[Kernel]) -> list[str]:
    tensors = [t.name for t in task.tensors]
    first = tensors[0]
    wide = " and ".join(f"{d} <= 256" for d in ("dim", "dim_v") if any(d in t.axes for t in task.tensors))
    lines = [
        *sizes(task),
        f"served = _capability({first}.device) == (9, 0) and {first}.dtype in OPERANDS and {wide}",
    ]
    given = ", ".join([*tensors, "scale=scale", *(f"{p.name}={p.name}" for p in task.parameters)])
    out = [
        f"    if {first}.is_cuda and {first}.get_device() != torch.cuda.current_device():",
        f"        with torch.cuda.device({first}.device):",
        *statement(f"return attention({given})", 3),
    ]
    out += [line for code in lines for line in statement(code, 1)]
    sliced = _slices(kernels)
    rest = "".join(f" and {python_text(w)} == _padded({python_text(w)})" for w in sliced)
    out += [f"    if not (served and _described({', '.join(tensors)}){rest}):"]
    out += [f"        plain({given})  # any device, type and stride", "        return"]
    work = ", ".join(expression(code) for code in _work(program, task, kernels[0]))
    opening = [
        "group = heads // kv_heads",
        f"choice = _choose({_held(task, kernels)}, {_length(program, task)}, {work})",
    ]
    if tiles := [name for name, _ in program.parameters]:
        opening.append(f"{', '.join(tiles)} = {', '.join(f'choice.{name}' for name in tiles)}")
    return out + [line for code in opening for line in statement(code, 1)]


def _work(program: ir.Program, task: TaskLike, kernel: Kernel) -> tuple[str, str, str]:
    """Rows of a tile's axis, how many such axes there are, and processors; no rows where tiles decide."""
    extents = [a.extent for a in kernel.view.whole.grid if a is not kernel.view.axis]
    tiles = {name for name, _ in program.parameters}
    if any(isinstance(p, ir.Sym) and p.name in tiles for e in extents for p in ir.walk(e)):
        return "0", "0", "1"
    rows = "seq_q" if "seq_q" in symbols(task) else "0"
    heads = " * ".join(f"({python_text(e)})" for e in extents) or "1"
    return rows, heads, f"_processors({task.tensors[0].name}.device)"


def _keys(program: ir.Program) -> str:
    """The function that counts what the longest loop goes over, where loops slide with the query rows."""
    found = reaches(program)
    if not found:
        return ""
    lines = "\n".join(f"    {line}" for r in found for line in r.lines("longest"))
    return KEYS.format(parameters=", ".join(f"{name}: int" for name in _reaching(program)), lines=lines)


def _reaching(program: ir.Program) -> list[str]:
    return sorted(set().union(*(r.symbols for r in reaches(program))))


def _length(program: ir.Program, task: TaskLike) -> str:
    """What the table is looked up by."""
    longer = largest(task, "seq_q", "seq_k")
    names = _reaching(program)
    return f"min({longer}, _keys({', '.join(names)}))" if names else longer


def _held(task: TaskLike, kernels: Sequence[Kernel]) -> str:
    """The head dimension as tiles hold it: padded, if it does not come in two pieces."""
    parts = [
        d if any(f"{d}_1" in k.constants for k in kernels) else f"_padded({d})"
        for d in ("dim", "dim_v") if any(d in t.axes for t in task.tensors)
    ]  # fmt: skip
    return f"max({', '.join(parts)})" if len(parts) > 1 else parts[0]


def _slices(kernels: Sequence[Kernel]) -> list[ir.Expr]:
    """Widths of slices that the program takes: a box must not reach beyond them, into the next slice."""
    widths = [
        p.width for k in kernels for c in k.channels.values() if len(c.pieces) > 1
        for p in c.pieces if not (isinstance(p.width, ir.Sym) and p.width.name.endswith(("_1", "_2")))
    ]  # fmt: skip
    return [w for w in dict.fromkeys(widths) if not isinstance(w, ir.Const)]


# --- rounds -----------------------------------------------------------------------------------------


def _function(kernel: Kernel, rounds: Rounds) -> str:
    return f"{kernel.stem}_{rounds.flag('rounds')}"


def _known(kernel: Kernel, rounds: Rounds, names: Sequence[str], task: TaskLike) -> list[str] | None:
    """What the bounds depend on, beside the tile; None where the host cannot tell."""
    v = rounds.loop.var
    local = {
        kernel.view.axis.name,
        "group_row",
        *(f"{v}_{end}" for end in ("start", "stop", "first", "last", "low")),
    }
    found = [rounds.loop.start, rounds.loop.stop, *rounds.bounds(), kernel.view.axis.extent, kernel.view.rows]
    symbols_ = {p.name for e in found for p in ir.walk(e) if isinstance(p, ir.Sym)} - local
    integers = {name for name, kind in symbols(task).items() if kind == "int"}
    if not rounds.known or not symbols_ <= integers | set(names):
        return None
    return sorted(symbols_)


def _rounds(kernel: Kernel, rounds: Rounds, names: Sequence[str], task: TaskLike) -> str:
    parameters = _known(kernel, rounds, names, task)
    if parameters is None or not any(f in kernel.flags for f in _flags(rounds)):
        return ""
    v, bounds = rounds.loop.var, rounds.bounds()
    text = [expression(python_text(e)) for e in (*bounds, rounds.loop.start, rounds.loop.stop)]
    first, last, low, high, start, stop = text
    high_end, low_end = f"{v}_last - {v}_high", f"{v}_low - {v}_first"
    lead, trail = (high_end, low_end) if rounds.backwards else (low_end, high_end)
    return ROUNDS.format(
        name=_function(kernel, rounds), parameters=", ".join(f"{p}: int" for p in parameters), var=v,
        row=kernel.view.axis.name, count=python_text(kernel.view.axis.extent), start=start, stop=stop,
        rows=python_text(kernel.view.rows), first=first, last=last, low=low, high=high,
        lead=lead, trail=trail,
    )  # fmt: skip


def _flags(rounds: Rounds) -> list[str]:
    return [rounds.flag(name) for name in ("SOME", "SKIPS", "LATER", "LAST")]


# --- launches ---------------------------------------------------------------------------------------


def _launch(kernel: Kernel, program: ir.Program, task: TaskLike) -> list[str]:
    text, names = kernel.text, [name for name, _ in program.parameters]
    lines = [f"{name} = {python_text(size)}" for size, name in text.sizes.items() if name not in SIZES]
    padded = [name for name in text.sizes.values() if f"{name}_p" in kernel.constants]
    if padded:
        calls = ", ".join(f"_padded({name})" for name in padded)
        lines.append(f"{', '.join(f'{name}_p' for name in padded)} = {calls}")
    halved = [
        c.removesuffix("_1") for c in kernel.constants if c.endswith("_1") and c.removesuffix("_1") in SIZES
    ]
    lines += [f"{name}_1, {name}_2 = _halves({name})" for name in halved]
    if text.factors:
        lines.append(f"fold = {' and '.join(f'{f} > 0' for f in text.factors.values())}")
        lines += [
            f"{name} = {value} if fold else 1.0"
            for name, value in text.factors.items()
            if name in kernel.numbers
        ]
    for rounds in text.loops:
        if any(f in kernel.flags for f in _flags(rounds)):
            known = _known(kernel, rounds, names, task)
            made = (
                "False, True, True, True"
                if known is None
                else f"_{_function(kernel, rounds)}({', '.join(known)})"
            )
            lines.append(f"{', '.join(_flags(rounds))} = {made}")
    others = [a for a in kernel.view.whole.grid if a is not kernel.view.axis]
    lines.append(f"row_tiles = {python_text(kernel.view.axis.extent)}")
    lines.append(f"heads_in_all = {' * '.join(python_text(a.extent) for a in others) or '1'}")
    lines.append("tiles = row_tiles * heads_in_all")
    lines.append(
        f"blocks = min(tiles, _processors({task.tensors[0].name}.device)) if choice.persistent else tiles"
    )
    if kernel.ways.reuse:  # where the widths do not fit each other, the buffer takes a stage's room
        widths = " == ".join(kernel.reused[1:]) if kernel.reused is not None else "False"
        lines.append(f"reuse = bool(choice.reuse) and {widths}")
        lines.append("stages = choice.stages if reuse else max(1, choice.stages - choice.reuse)")
    lines.append(f"head_group = _head_group(heads_in_all, {_bytes_per_head(kernel, task)}, choice.heads)")
    lines.append(f"counter = _counter({task.tensors[0].name}.device)")
    for access in (*kernel.sources, *kernel.targets):
        order = (*access.fixed, access.row_axis, access.col_axis)
        block = ", ".join([*("1" for _ in access.fixed), *(text.block(n) for n in access.shape)])
        lines.append(f"{access.argument} = _descriptor({access.matrix.tensor}, {order}, [{block}])")
    out = [line for code in lines for line in statement(code, 1)]
    return [*out, *call(f"{text.function}[(blocks,)]", _operands(kernel, task), 1)]


def _bytes_per_head(kernel: Kernel, task: TaskLike) -> str:
    """Of what loops read for one head: keys and values, shared by the query heads of a group."""
    looped = {a.argument for c in kernel.channels.values() if c.looped for a in kernel.sources
              if a.argument in kernel.of[c.name]}  # fmt: skip
    matrices = dict.fromkeys(a.matrix for a in kernel.sources if a.argument in looped)
    parts = [python_text(ir.Op("mul", (m.rows, m.cols))) for m in matrices]
    return expression(f"2 * ({' + '.join(parts) or '1'}) // group")


def _operands(kernel: Kernel, task: TaskLike) -> list[list[str]]:
    given = {
        "OPERAND": f"OPERANDS[{task.tensors[0].name}.dtype]",
        "FOLD": "fold",
        "CONSUMERS": "choice.consumers",
        "STAGES": "choice.stages",
        "OVERLAP": "bool(choice.overlap)",
        "PINGPONG": "bool(choice.pingpong and choice.overlap)",
        "GRID": "choice.persistent",
        "LONGEST_FIRST": "bool(choice.longest_first)",
        "REGISTERS": "choice.registers or REGISTERS[choice.consumers][0]",
        "PRODUCER_REGISTERS": "REGISTERS[choice.consumers][1]",
        "Q_STAGES": "choice.q_stages",
        "AHEAD": "bool(choice.ahead and choice.persistent == 2)",
        "CARRY": "bool(choice.carry and choice.overlap and choice.persistent)",
        "ARRIVALS": "128 if choice.arrivals else 1",
        "RESCALE": "choice.rescale",
        "REUSE": "reuse",
    }
    if kernel.ways.reuse:
        given["STAGES"] = "stages"
    for name, (rest, zero) in kernel.text.evens.items():
        given[name] = expression(f"{python_text(rest)} == {python_text(zero)}")
    descriptors: Sequence[Access] = (*kernel.sources, *kernel.targets)
    return [
        [a.argument for a in descriptors],
        ["counter", *kernel.numbers],
        [f"{name}={given.get(name, name)}" for name in kernel.constants],
        ["num_warps=4"],
    ]
