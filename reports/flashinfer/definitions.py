"""Owns what a run's cells are in flashinfer-bench's terms: a definition and a workload of it.

A definition fixes what a kernel is written for (numbers of heads, head dimensions, dtype); batch and
lengths vary, and so do the scalars `scale`, `window` and `softcap`, which are inputs of a call.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from functools import cache

from harness.records import WorkloadRecord
from reports.dataset import Cell
from reports.flashinfer.references import FORMS, reference
from reports.flashinfer.schema import Axis, Definition, Input, Tensor, Workload
from tasks import Task, discover

OP_TYPE = "attention"
_DTYPES: Mapping[str, str] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
_SCALARS: Mapping[str, str] = {"int": "int32", "float": "float32"}
_FIXED = ("heads", "kv_heads", "dim", "dim_v")
_VARY = ("batch", "seq_q", "seq_k")
_AXES: Mapping[str, str] = {
    "batch": "sequences",
    "seq_q": "queries of a sequence",
    "seq_k": "keys of a sequence",
    "heads": "query heads",
    "kv_heads": "key and value heads",
    "dim": "head dimension of queries and keys",
    "dim_v": "head dimension of values and the output",
}
# Any fixed one: the same workload gets the same identifier in every export.
_NAMESPACE = uuid.UUID("6f1d4e0e-6d5c-5b6f-9f53-6e1b5b0f5a11")


class Unsayable(Exception):
    """What the format has no words for; the text says why."""


def name_of(cell: Cell) -> str:
    """'gqa_causal_h32_kv8_d128_fp16', with the dimension of the values where it differs."""
    w = cell.workload
    dim = f"d{w.dim}" + (f"_v{w.dim_v}" if w.dim_v != w.dim else "")
    return f"{cell.task}_h{w.heads}_kv{w.kv_heads}_{dim}_{w.dtype}"


def definition(cells: Iterable[Cell]) -> Definition:
    """Of cells that share one; raises Unsayable for a task or a dtype that the format cannot hold."""
    cells = list(cells)
    cell = cells[0]
    task, w = _known(cell.task), cell.workload
    if w.dtype not in _DTYPES:
        raise Unsayable(f"the format has no dtype for {w.dtype}")
    inputs = {
        t.name: Tensor(shape=t.axes, dtype=_DTYPES[w.dtype], description=t.doc or None) for t in task.inputs
    }
    inputs["scale"] = Tensor(shape=None, dtype="float32", description="factor of the scores")
    for p in task.parameters:
        inputs[p.name] = Tensor(shape=None, dtype=_SCALARS[p.type], description=p.doc)
    text = reference(cell.task, task.title, tuple(inputs))
    if text is None:
        raise Unsayable(_no_reference(cell.task))
    return Definition(
        name=name_of(cell),
        op_type=OP_TYPE,
        axes={name: _axis(name, w) for name in (*_VARY, *_FIXED)},
        inputs=inputs,
        outputs={
            t.name: Tensor(shape=t.axes, dtype=_DTYPES[w.dtype], description=t.doc or None)
            for t in task.outputs
        },
        reference=text,
        tags=_tags(cells),
        description=f"{task.title}. {task.description}",
        constraints=(FORMS[cell.task].heads,),
    )


def workload(cell: Cell) -> Workload:
    """The cell's shape; tensors are drawn at random, scalars have their value."""
    task, w = _known(cell.task), cell.workload
    inputs = {t.name: Input(type="random") for t in task.inputs}
    inputs["scale"] = Input(type="scalar", value=w.scale)
    for p in task.parameters:
        value = w.parameters.get(p.name)
        if value is None:
            raise Unsayable(f"its record gives no {p.name}")
        inputs[p.name] = Input(type="scalar", value=int(value) if p.type == "int" else value)
    return Workload(
        axes={name: getattr(w, name) for name in _VARY},
        inputs=inputs,
        uuid=str(uuid.uuid5(_NAMESPACE, f"{cell.task}/{w.key}")),
    )


def scalars(task: str) -> tuple[str, ...]:
    """Names of the scalar inputs of a task, in the order of a call."""
    return ("scale", *(p.name for p in _known(task).parameters))


def _axis(name: str, w: WorkloadRecord) -> Axis:
    if name in _VARY:
        return Axis(type="var", description=_AXES[name])
    return Axis(type="const", value=getattr(w, name), description=_AXES[name])


def _tags(cells: Iterable[Cell]) -> tuple[str, ...]:
    cells = list(cells)
    labels = dict.fromkeys(c.workload.label for c in cells if c.workload.label)
    versions = dict.fromkeys(r.result.identity.task for c in cells for r in c.rows)
    return (
        "attnbench",
        f"task:{cells[0].task}",
        *(f"task-file-sha256:{version}" for version in versions),
        *(f"model:{label}" for label in labels),
    )


def _known(task: str) -> Task:
    if task not in FORMS:
        raise Unsayable(_no_reference(task))
    return _core()[task]


@cache
def _core() -> dict[str, Task]:
    return discover()


def _no_reference(task: str) -> str:
    return f"{task} is no core task, and a definition needs reference code, which a run does not hold"
