"""Owns TL103 as an error: an input of the task that is copied, and that nothing is computed from."""

from __future__ import annotations

from harness.tl import ir
from harness.tl.diagnostics import Finding, Severity, finding
from harness.tl.problem import TaskLike
from harness.tl.syntax import Pos


def check_usage(program: ir.Program, task: TaskLike) -> list[Finding]:
    """Inputs along a sequence that reach no operation: the result cannot depend on them."""
    wanted = {t.name for t in task.tensors if t.role == "input" and {"seq_q", "seq_k"} & {*t.axes}}
    loads: dict[str, ir.Load] = {}
    used: set[str] = set()
    for kernel in program.kernels:
        holds: dict[ir.Tile, set[str]] = {}
        for node in ir.nodes(kernel.body):
            if isinstance(node, ir.Load):
                holds.setdefault(node.tile, set()).add(node.matrix.tensor)
                loads.setdefault(node.matrix.tensor, node)
                used |= {node.via.tensor} if node.via is not None else set()
            elif isinstance(node, ir.Move):
                holds.setdefault(node.target, set()).update(holds.get(node.tile, ()))
            else:
                used |= {name for tile in ir.reads(node) for name in holds.get(tile, ())}
    unused = wanted & loads.keys() - used
    if unused:
        unused -= {x for k in program.kernels for n in ir.nodes(k.body) for x in _elements(n)}
    found = []
    for name in sorted(unused):
        source, tile = loads[name].source, loads[name].tile
        pos = source.pos if source is not None else Pos(1, 1)
        text = f"nothing is computed from `{tile.name}`, and the result depends on it"
        found.append(finding("TL103", pos, text, f"let `{tile.name}` enter a product", Severity.ERROR))
    return found


def _elements(node: ir.Node) -> set[str]:
    """The tensors of which an operation reads single elements."""
    exprs = [getattr(node, name, None) for name in ("expr", "cond", "start", "stop", "row", "col")]
    return {x.tensor for e in exprs if e is not None for x in ir.walk(e) if isinstance(x, ir.Element)}
