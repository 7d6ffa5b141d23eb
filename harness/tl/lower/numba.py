"""Owns the Numba back end: a resolved program -> a candidate for CPUs, one Python file that stands alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from harness.tl import ir
from harness.tl.lower.carried import carried, given_keys
from harness.tl.lower.choices import ANY_DIM, Row
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.numba_block import Block
from harness.tl.lower.numba_scope import Check, Module
from harness.tl.lower.numba_source import ENVIRONMENT, FLAGS_SOURCE, functions, provided
from harness.tl.lower.numba_text import Kind, Names, NoText, Text, Writer
from harness.tl.lower.numba_values import rounding
from harness.tl.problem import TaskLike

ENTRY = "attention.py"
WIDTH = 100
_SCALAR_TYPES = {"int": Kind.INT, "float": Kind.FLOAT}


def lower_numba(program: ir.Program, task: TaskLike, choice: Mapping[str, int] | None = None) -> Lowered:
    """A candidate folder for float32 tensors on CPUs; the same program always gives the same text.

    `choice` gives values of tile parameters, the first choice serves for the others; keys of the
    schedule are allowed in it and mean nothing here. Raises LowerError.
    """
    parameters = _choose(program, choice or {})
    given = ("attention", "scale", *(t.name for t in task.tensors), *(p.name for p in task.parameters))
    names = Names({*provided(), *ENVIRONMENT, *given})
    constants = {name: names.fresh(name) for name in parameters}
    functions_of = {k.name: names.fresh(k.name) for k in program.kernels}
    blocks_of = {k.name: names.fresh(f"{k.name}_block") for k in program.kernels}
    if len(functions_of) < len(program.kernels):
        raise LowerError("two kernels of the program have one name")
    workspaces = {m.tensor: m for k in program.kernels for m in k.matrices if m.workspace}
    reserved = frozenset(
        {*provided(), *ENVIRONMENT, *constants.values(), *functions_of.values(), *blocks_of.values()}
    )
    module = Module(task, parameters, constants, reserved, workspaces)
    _check_dtypes(task, workspaces)
    kernels = [Block(kernel, module) for kernel in program.kernels]
    parts = [
        _kernel(block, functions_of[block.kernel.name], blocks_of[block.kernel.name]) for block in kernels
    ]
    entry = _entry(task, module, [(functions_of[b.kernel.name], b) for b in kernels])
    imports, support = functions(module.uses)
    text = "\n".join(
        [
            f'"""{program.name} for CPUs: generated from LLM-TL; fp32, tensors of any length."""',
            "",
            *imports,
            "",
            *(f"{constants[name]} = {value}" for name, value in parameters.items()),
            FLAGS_SOURCE,
            *(f"\n\n{part}" for part in parts),
            f"\n\n{entry}",
            "\n\n# --- what the kernels are made of " + "-" * 66,
            *(f"\n\n{part}" if part.startswith(("@", "def", "class")) else f"\n{part}" for part in support),
            "",
        ]
    )
    name = f"{program.name}_numba"
    code = {"candidate.toml": _manifest(name, program, task, parameters), ENTRY: text}
    row = Row.of(4, ANY_DIM, 0, parameters)
    told = carried(program, "numba", {ENTRY: [row]}, given_keys(None, choice))
    return Lowered.of(name, "numba", code, parameters, told)


def _choose(program: ir.Program, choice: Mapping[str, int]) -> dict[str, int]:
    known = {**program.defaults, **dict(program.schedule)}
    for name, value in choice.items():
        if name not in known:
            raise LowerError(f"no tile parameter {name}; there are: {', '.join(program.defaults) or 'none'}")
        if name in program.defaults and value < 1:
            raise LowerError(f"tile parameter {name} must be at least 1, not {value}")
    return {name: choice.get(name, first) for name, first in program.defaults.items()}


def _check_dtypes(task: TaskLike, workspaces: Mapping[str, ir.Matrix]) -> None:
    for tensor in task.tensors:
        if tensor.dtype not in (None, "fp32", "fp64") and "int" not in str(tensor.dtype):
            raise LowerError(f"tensor {tensor.name} has dtype {tensor.dtype}; this back end has fp32 only")
    for name, matrix in workspaces.items():
        try:
            rounding(matrix.dtype)
        except NoText as error:
            raise LowerError(f"workspace {name}: {error}") from None


def _manifest(name: str, program: ir.Program, task: TaskLike, parameters: Mapping[str, int]) -> str:
    tiles = ", ".join(f"{key} = {value}" for key, value in parameters.items()) or "no tile parameters"
    return "\n".join(
        [
            f'name = "{name}"',
            f'description = "{program.name}, compiled from LLM-TL to Numba with {tiles}."',
            f'tasks = ["{task.name}"]',
            'backend = "numba"',
            'targets = ["cpu"]',
            f'entry = "{ENTRY}"',
            "",
        ]
    )


def _kernel(block: Block, function: str, block_function: str) -> str:
    """The function of one block, and the one that runs all blocks of the grid."""
    scope, kernel = block.scope, block.kernel
    grid = list(scope.grid.values())
    try:
        extents = [scope.index(axis.extent) for axis in kernel.grid]
    except NoText as error:
        raise LowerError(f"kernel {kernel.name}: extents of the grid: {error}") from None
    given = [*scope.tensors.values(), *scope.symbols.values()]
    inner = [*given, *grid, *block.arrays]
    lines = [
        '@njit(fastmath=FLAGS, error_model="numpy")',
        *_listed(f"def {block_function}", inner, ":"),
        f'    """One block of the grid ({", ".join(grid)}), in the memory given for its tiles."""',
        *(scope.lines or ["    pass"]),
        "",
        "",
        "@njit(parallel=True)",
        *_listed(f"def {function}", given, ":"),
        '    """All blocks: threads get runs of them, so the rows of one head stay on one core."""',
    ]
    counts = {name: scope.names("count", f"{name}_count") for name in grid}
    lines += [f"    {counts[name]} = {extent}" for name, extent in zip(grid, extents, strict=True)]
    rows = next((scope.grid[a.name] for a in kernel.grid if a.role == "rows"), None)
    order = [name for name in grid if name != rows] + ([rows] if rows else [])
    total = " * ".join(f"max({counts[name]}, 0)" for name in order) or "1"
    lines.append(f"    for work in prange({total}):")
    left = "work"
    for name in reversed(order):
        taken = left if name == order[0] else f"{left} % {counts[name]}"
        lines.append(f"        {name} = {taken}")
        left = f"{left} // {counts[name]}"
    if rows is not None:
        lines.append("        # from both ends by turns: under a causal mask, too, each thread gets as much")
        lines.append(f"        {rows} = {rows} // 2 if {rows} % 2 else {counts[rows]} - 1 - {rows} // 2")
    for name, (height, width) in block.arrays.items():
        lines.append(f"        {name} = np.empty(({height}, {width}), np.float32)")
    lines += _listed(f"        {block_function}", inner)
    return "\n".join(lines)


def _listed(head: str, items: Sequence[str], tail: str = "") -> list[str]:
    """head(items)tail, on one line or wrapped."""
    line = f"{head}({', '.join(items)}){tail}"
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(head) - len(head.lstrip()))
    body = textwrap.wrap(", ".join(items), WIDTH - len(indent) - 4, break_long_words=False)
    return [f"{head}(", *(f"{indent}    {part}" for part in body), f"{indent}){tail}"]


def _entry(task: TaskLike, module: Module, kernels: list[tuple[str, Block]]) -> str:
    names = Names({*module.reserved, *(t.name for t in task.tensors)})
    needed: dict[str, str] = {}
    for parameter in ("scale", *(p.name for p in task.parameters)):
        needed[parameter] = names("symbol", parameter)
    symbols: dict[str, str] = {}

    def symbol(name: str) -> Text:
        if name in module.parameters:
            return Text(module.parameters[name], Kind.INT)
        if name not in module.kinds:
            raise NoText(f"`{name}` has no value here")
        symbols.setdefault(name, names("symbol", name))
        return Text(symbols[name], module.kinds[name])

    def element(name: str, indices: tuple[Text, ...]) -> Text:
        raise NoText(f"an element of {name} cannot size a tile or a workspace")

    writer = Writer(symbol, element)
    calls, made, checks = [], [], []
    for check in dict.fromkeys(module.checks):
        checks += _check(check, writer)
    for name, matrix in module.workspaces.items():
        try:
            shape = ", ".join(writer.index(extent) for extent in matrix.workspace)
        except NoText as error:
            raise LowerError(f"workspace {name}: {error}") from None
        made.append(f"    {names('workspace', name)} = np.empty(({shape},), np.float32)")
    tensors = {t.name for t in task.tensors}
    for function, block in kernels:
        arrays = [f"{t}.numpy()" if t in tensors else names("workspace", t) for t in block.scope.tensors]
        calls += _listed(f"    {function}", [*arrays, *(symbol(s).code for s in block.scope.symbols)])
    signature = ", ".join(f"{t.name}: Tensor" for t in task.tensors)
    scalars = ", ".join(["scale: float", *(f"{p.name}: {p.type}" for p in task.parameters)])
    written = ", ".join(t.name for t in task.tensors if t.role == "output")
    floats = [t.name for t in task.tensors if t.dtype is None]
    return "\n".join(
        [
            f"def attention({signature}, *, {scalars}) -> None:",
            f'    """Writes {written}; all are fp32 tensors in CPU memory."""',
            f"    for tensor in ({', '.join(floats)},):",
            "        if tensor.dtype != torch.float32:",
            '            raise TypeError(f"this kernel is written for fp32, not {tensor.dtype}")',
            *_sizes(task, symbols, needed),
            *checks,
            *made,
            *calls,
        ]
    )


def _sizes(task: TaskLike, symbols: Mapping[str, str], needed: Mapping[str, str]) -> list[str]:
    """The code that finds the value of each symbol that the kernels take."""
    where = {
        axis: f"{t.name}.shape[{at}]"
        for t in reversed(task.tensors)
        for at, axis in reversed([*enumerate(t.axes)])
    }
    kinds = {"scale": Kind.FLOAT, **{p.name: _SCALAR_TYPES[p.type] for p in task.parameters}}
    lines = []
    for name, identifier in symbols.items():
        if name in needed:
            if kinds[name] is Kind.FLOAT:
                lines.append(f"    {identifier} = np.float32({name})")
        elif name == "group":
            lines.append(f"    {identifier} = {where['heads']} // {where['kv_heads']}")
        elif name in where:
            lines.append(f"    {identifier} = {where[name]}")
        else:
            raise LowerError(f"no tensor of the task says what `{name}` is")
    return lines


def _check(check: Check, writer: Writer) -> list[str]:
    try:
        left, right = writer.write(check.left).inside(1), writer.write(check.right).inside(1)
    except NoText as error:
        raise LowerError(f"{check.message}: {error}") from None
    return [f"    if {left} != {right}:", f"        raise ValueError({check.message!r})"]
