"""Owns the shape grids that several tasks share: the paper's, and hidden ones derived from any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tasks.spec import Task, Workload

PAPER_TOKENS = 16_384
PAPER_LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)

# (batch, kv heads, seq_q, seq_k) of the hidden shapes. One below and one above a tile of 128 or
# 64, primes, more and fewer queries than keys (causal: rows that see nothing), and a key axis
# long enough for the rounding of a half-precision accumulator to pile up.
_HIDDEN = (
    (1, 2, 127, 127),
    (2, 2, 129, 257),
    (1, 2, 113, 203),
    (1, 2, 257, 129),
    (1, 2, 65, 2049),
)


def paper_grid(task: str, dtypes: tuple[str, ...] = ("fp16", "bf16")) -> tuple[Workload, ...]:
    """QiMeng-Attention's grid: hidden size 2048 as d128 x 16 and d64 x 32 heads, 16k tokens a batch."""
    return tuple(
        Workload(task, PAPER_TOKENS // n, 2048 // dim, 2048 // dim, n, n, dim, dim, dtype)
        for dtype in dtypes
        for dim in (128, 64)
        for n in PAPER_LENGTHS
    )


def model_shape(
    task: str,
    label: str,
    heads: tuple[int, int],
    seq: int,
    dim: int,
    dim_v: int | None = None,
    *,
    scale: float | None = None,
    **parameters: int | float,
) -> Workload:
    """Self-attention of a named model in fp16: (query heads, kv heads), batch so that it is 16k tokens."""
    return Workload(
        task,
        max(1, PAPER_TOKENS // seq),
        *heads,
        seq,
        seq,
        dim,
        dim_v or dim,
        scale=scale,
        parameters=tuple(parameters.items()),
        label=label,
    )


def with_hidden(
    sets: Mapping[str, tuple[Workload, ...]], extra: Iterable[Workload] = ()
) -> dict[str, tuple[Workload, ...]]:
    """The sets and a `hidden` one: shapes derived from all of theirs, then `extra`."""
    listed = [workload for group in sets.values() for workload in group]
    return {**sets, "hidden": (*hidden_shapes(listed), *extra)}


def hidden_shapes(workloads: Iterable[Workload]) -> tuple[Workload, ...]:
    """Small nasty shapes, five for each distinct configuration among `workloads`.

    A configuration is what a kernel is compiled for: heads per kv head, head dims, dtype,
    scale and parameters. A window is narrowed so that the small shapes have rows on both
    its edges, except on the first shape, where it stays (wider than the sequence in most).
    """
    distinct = {(_configuration(w), w.parameters): w for w in workloads}
    return tuple(
        w.with_(
            batch=batch,
            heads=w.group * min(kv_heads, w.kv_heads),
            kv_heads=min(kv_heads, w.kv_heads),
            seq_q=seq_q,
            seq_k=seq_k,
            parameters=_narrowed(w, seq_k) if n else w.parameters,
            label="",
        )
        for w in distinct.values()
        for n, (batch, kv_heads, seq_q, seq_k) in enumerate(_HIDDEN)
    )


def hidden_for(task: Task, workload: Workload) -> tuple[Workload, ...]:
    """The hidden shapes of this workload's configuration.

    The task's own where its set `hidden` lists some of that configuration, else derived ones.
    """
    own = task.workloads.get("hidden", ())
    same = tuple(w for w in own if _configuration(w) == _configuration(workload))
    return same or hidden_shapes((workload,))


def _configuration(w: Workload) -> tuple[object, ...]:
    fixed = tuple((name, value) for name, value in w.parameters if name != "window")
    return (w.group, w.kv_heads == 1 and w.heads > 1, w.dim, w.dim_v, w.dtype, w.scale, fixed)


def _narrowed(w: Workload, seq_k: int) -> tuple[tuple[str, int | float], ...]:
    return tuple((n, min(int(v), seq_k // 3) if n == "window" else v) for n, v in w.parameters)
