"""Owns the decision whether outputs are right; knows nothing of who computed them, or where.

An output passes when all of these hold (docs/protocol.md, section 3):

- every element is finite, and rows that may see no key are exactly zero;
- max |out - ref| <= r * max |low - ref| + 2 * max |(ref + 0.3 - 0.3) - ref| in the output dtype,
  `low` being plain PyTorch in the test dtype, r the task's factor (flash-attention's own rule);
- the RMS error of every (batch, head, 64-row) tile, over the tile's own RMS, is at most
  r * (the worst tile of `low`) + u, so that a wrong tile cannot hide among large values;
- the cosine distance of the whole output is at most 1e-5, or r^2 that of `low`.

The tile cap. Tiles differ in size of values (the first causal rows average one key, the last
thousands) but hardly in relative error, so one cap per output serves, taken from the worst
tile of the yardstick, which rounds scores, weights and result to the test dtype. Where the
yardstick is exact by luck (uniform weights 1/N with N a power of two, one dominating key) a
sound kernel may still round its weights and its result once each: u / sqrt(3) each, together
0.82 u, hence the added u, the unit roundoff of the output dtype.

In fp32 and fp64 no accumulator is wider than the result, and the order of summation alone
changes it: a sequential sum of n terms errs by about sqrt(n) u. The max rule and the cap grow
by 8 sqrt(seq_k) u, still far under TF32 (2^-11), which is refused in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tasks import oracle
from tasks.spec import DTYPES, Task, TensorSpec, Workload

TILE_ROWS = 64
COSINE_ALLOWED: Mapping[str, float] = {"fp16": 1e-5, "bf16": 1e-5, "fp32": 1e-9, "fp64": 1e-12}
_HALF_PRECISION = ("fp16", "bf16")
_CHUNK_ELEMENTS = 1 << 25  # 128 MB of fp32 a temporary: a 16k-token cell in one or two chunks

Reference = Literal["float64", "float32"]


class ToleranceError(ValueError):
    """Outputs or inputs that cannot be judged at all; the text says why."""


@dataclass(frozen=True)
class Comparison:
    """The decision on one set of outputs; fields as in harness.records.Check."""

    passed: bool
    error_max: float
    error_allowed: float
    tile_error: float
    tile_error_allowed: float
    cosine_distance: float
    reference: Reference = "float64"
    note: str = ""


@dataclass(frozen=True)
class Expectation:
    """The right outputs of one workload on one set of inputs, and how far off is allowed."""

    outputs: Mapping[str, _Expected]
    reference: Reference

    def compare(self, outputs: Mapping[str, Tensor]) -> Comparison:
        """Judge outputs given by name, on any device; NaN stands for what was never written.

        Of several outputs the one that fails, or comes closest to it, is reported. Raises
        ToleranceError where one is missing or has another shape or dtype.
        """
        missing = sorted(set(self.outputs) - set(outputs))
        if missing:
            raise ToleranceError(f"no output named {', '.join(missing)} to compare")
        found = [one.compare(outputs[name], self.reference) for name, one in self.outputs.items()]
        return max(found, key=lambda c: (not c.passed, c.error_max / max(c.error_allowed, 1e-300)))


def expect(
    task: Task, workload: Workload, inputs: Mapping[str, Tensor], reference: Reference = "float64"
) -> Expectation:
    """The exact outputs and their bounds for these inputs, on the inputs' device.

    `reference` float32 is for devices where float64 is out of reach; the record says so. Raises
    ToleranceError where the plain computation itself overflows: such inputs prove nothing.
    """
    exact = oracle.expected(task, workload, inputs, getattr(torch, reference))
    low = oracle.plain(task, workload, inputs)
    return Expectation(
        {t.name: _expected(task, workload, t, exact.pop(t.name), low.pop(t.name)) for t in task.outputs},
        reference,
    )


@dataclass(frozen=True)
class _Errors:
    """Distances of one output from its reference, still on the device. Rows: (batch, seq_q, heads)."""

    row_max: Tensor
    tile: Tensor  # (batch, tiles, heads): RMS error over RMS of the reference
    square: Tensor  # sum of err^2, of out^2
    out_square: Tensor


@dataclass(frozen=True)
class _Expected:
    spec: TensorSpec
    dtype: torch.dtype
    shape: tuple[int, ...]
    reference: Tensor  # (batch, seq_q, heads, channels), float32 for 16-bit outputs, else float64
    row_square: Tensor  # (batch, seq_q, heads): sum of ref^2 over channels
    error_allowed: float
    tile_allowed: float
    cosine_allowed: float

    def compare(self, given: Tensor, reference: Reference) -> Comparison:
        if tuple(given.shape) != self.shape or given.dtype != self.dtype:
            raise ToleranceError(
                f"output {self.spec.name} is {tuple(given.shape)} {given.dtype}; "
                f"expected {self.shape} {self.dtype}"
            )
        out = _as_rows(given.to(self.reference.device), self.spec)
        wrong = _non_finite_note(out)
        if wrong:
            return Comparison(
                False, math.inf, self.error_allowed, math.inf, self.tile_allowed, 1.0, reference, wrong
            )
        errors = _distances(out, self.reference, self.row_square)
        stray = ((self.row_square == 0) & (errors.row_max > 0)).sum()
        error_max, tile_error, square, out_square, ref_square, stray_rows, over = torch.stack(
            [
                x.double()
                for x in (
                    errors.row_max.max(),
                    errors.tile.max(),
                    errors.square,
                    errors.out_square,
                    self.row_square.sum(dtype=torch.float64),
                    stray,
                    (errors.tile > self.tile_allowed).sum(),
                )
            ]
        ).tolist()
        cosine = _cosine_distance(square, out_square, ref_square)
        note = ""
        if stray_rows:
            place = _worst_row(torch.where(self.row_square == 0, errors.row_max, 0.0))
            note = f"{int(stray_rows)} rows that may see no key are not zero; {self._at(out, place)}"
        elif not error_max <= self.error_allowed:
            note = (
                f"an element is off by {error_max:.3g} where {self.error_allowed:.3g} is allowed; "
                f"{self._at(out, _worst_row(errors.row_max))}"
            )
        elif not tile_error <= self.tile_allowed:
            note = (
                f"{int(over)} of {errors.tile.numel()} tiles (batch, head, {TILE_ROWS} queries) have a "
                f"relative RMS error above {self.tile_allowed:.3g}, the worst {tile_error:.3g} in "
                f"{self._tile(errors.tile)}; {self._at(out, self._worst_row_of_tile(errors))}"
            )
        elif not cosine <= self.cosine_allowed:
            note = (
                f"the output points elsewhere: cosine distance {cosine:.3g} where "
                f"{self.cosine_allowed:.3g} is allowed; {self._at(out, _worst_row(errors.row_max))}"
            )
        return Comparison(
            not note, error_max, self.error_allowed, tile_error, self.tile_allowed, cosine, reference, note
        )

    def _at(self, out: Tensor, place: tuple[int, int, int]) -> str:
        batch, query, head = place
        got, want = out[batch, query, head].to(self.reference.dtype), self.reference[batch, query, head]
        channel = int((got - want).abs().argmax())
        return (
            f"worst at batch {batch}, head {head}, query {query}, channel {channel}: "
            f"got {float(got[channel]):.6g}, expected {float(want[channel]):.6g}"
        )

    def _tile(self, tile: Tensor) -> str:
        batch, index, head = _worst_row(tile)
        last = min(self.reference.shape[1], (index + 1) * TILE_ROWS) - 1
        return f"batch {batch}, head {head}, queries {index * TILE_ROWS}-{last}"

    def _worst_row_of_tile(self, errors: _Errors) -> tuple[int, int, int]:
        batch, index, head = _worst_row(errors.tile)
        start = index * TILE_ROWS
        rows = errors.row_max[batch, start : start + TILE_ROWS, head]
        return batch, start + int(rows.argmax()), head


def _expected(task: Task, w: Workload, spec: TensorSpec, exact: Tensor, low: Tensor) -> _Expected:
    name = spec.dtype_of(w)
    dtype, u = DTYPES[name], torch.finfo(DTYPES[name]).eps / 2
    kept = torch.float32 if name in _HALF_PRECISION else torch.float64
    reference = _as_rows(exact.to(kept), spec).contiguous()
    low = _as_rows(low.to(dtype), spec)
    for what, tensor in (("reference", reference), ("plain computation", low)):
        if not bool(torch.isfinite(tensor).all()):
            raise ToleranceError(
                f"{task.name} {w.key}: the {what} of {spec.name} is not finite on these inputs; "
                "use a recipe that stays inside the dtype"
            )
    row_square = _row_square(reference)
    errors = _distances(low, reference, row_square)
    low_max, low_tile, square, out_square, ref_square, largest, rounding = torch.stack(
        [
            x.double()
            for x in (
                errors.row_max.max(),
                errors.tile.max(),
                errors.square,
                errors.out_square,
                row_square.sum(dtype=torch.float64),
                reference.abs().max(),
                _rounding(reference, dtype),
            )
        ]
    ).tolist()
    r = task.tolerance_factor
    order = 0.0 if name in _HALF_PRECISION else 8 * math.sqrt(w.seq_k) * u
    low_cosine = _cosine_distance(square, out_square, ref_square)
    return _Expected(
        spec,
        dtype,
        spec.shape(w),
        reference,
        row_square,
        error_allowed=r * low_max + 2 * rounding + order * largest,
        tile_allowed=r * low_tile + u + order,
        cosine_allowed=max(COSINE_ALLOWED[name], r * r * low_cosine),
    )


def _as_rows(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """(batch, seq_q, heads, channels), whatever the order of the output's axes; absent ones have size 1."""
    axes = list(spec.axes)
    for axis in ("batch", "seq_q", "heads"):
        if axis not in axes:
            axes.append(axis)
            tensor = tensor.unsqueeze(-1)
    front = [axes.index(axis) for axis in ("batch", "seq_q", "heads")]
    rest = [n for n in range(len(axes)) if n not in front]
    tensor = tensor.permute(*front, *rest)
    return tensor.unsqueeze(-1) if not rest else tensor.flatten(3)


def _chunks(rows: Tensor) -> list[slice]:
    """Slices of the batch * seq_q axis that bound temporaries."""
    step = max(1, _CHUNK_ELEMENTS // math.prod(rows.shape[2:]))
    total = rows.shape[0] * rows.shape[1]
    return [slice(start, start + step) for start in range(0, total, step)]


def _row_square(rows: Tensor) -> Tensor:
    flat = rows.flatten(0, 1)
    return torch.cat([flat[s].square().sum(-1) for s in _chunks(rows)]).view(rows.shape[:3])


def _distances(out: Tensor, reference: Tensor, row_square: Tensor) -> _Errors:
    flat, expected = out.flatten(0, 1), reference.flatten(0, 1)
    row_max, row_error, squares = [], [], []
    for s in _chunks(reference):
        given = flat[s].to(reference.dtype)
        error = given - expected[s]
        row_error.append(error.square().sum(-1))
        row_max.append(error.abs_().amax(-1))
        squares.append(given.square_().sum(-1).sum(dtype=torch.float64))
    shape = reference.shape[:3]
    errors = torch.cat(row_error).view(shape)
    return _Errors(
        row_max=torch.cat(row_max).view(shape),
        tile=_relative(_tiles(errors), _tiles(row_square)),
        square=errors.sum(dtype=torch.float64),
        out_square=torch.stack(squares).sum(),
    )


def _tiles(rows: Tensor) -> Tensor:
    """Sums over 64 rows: (batch, seq_q, heads) -> (batch, tiles, heads), the last tile possibly short."""
    padding = -rows.shape[1] % TILE_ROWS
    padded = functional.pad(rows, (0, 0, 0, padding))
    batch, _, heads = rows.shape
    return padded.view(batch, -1, TILE_ROWS, heads).sum(2, dtype=torch.float64)


def _relative(error: Tensor, size: Tensor) -> Tensor:
    """sqrt(error / size); a tile whose reference is all zero must be met exactly."""
    nothing = torch.where(error > 0, math.inf, 0.0)
    return torch.where(size > 0, (error / size.clamp_min(1e-300)).sqrt(), nothing)


def _rounding(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """max |(ref + 0.3 - 0.3) - ref| in the output dtype: what one rounding at that size costs."""
    flat = reference.flatten(0, 1)
    worst = []
    for s in _chunks(reference):
        rounded = flat[s].to(dtype)
        worst.append(((rounded + 0.3 - 0.3) - rounded).abs().max())
    return torch.stack(worst).max()


def _cosine_distance(error_square: float, out_square: float, ref_square: float) -> float:
    """1 - cos(out, ref) from sums of squares, without the cancellation of computing it as such."""
    if ref_square == 0 or out_square == 0:
        return 0.0 if ref_square == out_square else 1.0
    out, ref = math.sqrt(out_square), math.sqrt(ref_square)
    return max(0.0, (error_square - (out - ref) ** 2) / (2 * out * ref))


def _worst_row(values: Tensor) -> tuple[int, int, int]:
    place = int(values.argmax())
    _, rows, heads = values.shape
    return place // (rows * heads), place // heads % rows, place % heads


def _non_finite_note(out: Tensor) -> str:
    """Empty where all is finite, else a sentence that counts and locates."""
    bad = ~torch.isfinite(out)
    count = int(bad.sum())
    if not count:
        return ""
    missing = int(torch.isnan(out).sum())
    what = [f"{missing} NaN or never written"] if missing else []
    what += [f"{count - missing} infinite"] if count > missing else []
    row = bad.any(-1)
    batch, query, head = _worst_row(row.to(torch.uint8))
    channel = int(bad[batch, query, head].to(torch.uint8).argmax())
    return (
        f"{' and '.join(what)} of {out.numel()} elements, in {int(row.sum())} of {row.numel()} rows; "
        f"first at batch {batch}, head {head}, query {query}, channel {channel}"
    )
