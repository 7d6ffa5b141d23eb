"""Owns the device functions that generated Triton kernels call: division, memory, what is done about -inf."""

from __future__ import annotations

import re
from collections.abc import Mapping

_PRELUDE = '''
@triton.jit
def floor_div(a, b):
    """Rounds down for negative a too; b > 0. Triton's own division rounds toward zero."""
    return a // b - (a % b < 0)


@triton.jit
def ceil_div(a, b):
    """Rounds up for negative a too; b > 0."""
    return floor_div(a + b - 1, b)


@triton.jit
def wide(x):
    """As 64 bits: an offset in a large tensor does not fit in 32."""
    return x + tl.full([], 0, tl.int64)


@triton.jit
def finite(x):
    """What may be taken away: a row that has seen no key has maximum -inf, and -inf - -inf stays -inf."""
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit
def inverse(x):
    """1 / x, and 0 for 0: a row that has seen no key gives zeros."""
    return tl.where(x == 0.0, 0.0, 1.0 / tl.where(x == 0.0, 1.0, x))


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.math.exp2(x * (2.0 * LOG2_E)) + 1.0)


@triton.jit
def load_tile(
    base, stride_row, stride_col,
    row, col, rows, cols, pad, ROWS: tl.constexpr, COLS: tl.constexpr, CHECK: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) elements from (row, col) on; `pad` outside the matrix."""
    r, c = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    pointers = base + r.to(tl.int64)[:, None] * stride_row + c[None, :] * stride_col
    if CHECK:
        inside = (r[:, None] >= 0) & (r[:, None] < rows) & (c[None, :] < cols)
        tile = tl.load(pointers, mask=inside, other=pad)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_tile(
    base, stride_row, stride_col,
    row, col, rows, cols, tile, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLS) elements to (row, col) and on; nothing outside the matrix."""
    r, c = row + tl.arange(0, ROWS), col + tl.arange(0, COLS)
    inside = (r[:, None] >= 0) & (r[:, None] < rows) & (c[None, :] < cols)
    pointers = base + r.to(tl.int64)[:, None] * stride_row + c[None, :] * stride_col
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)
'''


def helpers(body: str) -> str:
    """Source of the functions that the text calls, and of those that these call, in the prelude's order."""
    return called_from(body, SOURCE)


def called_from(body: str, prelude: Mapping[str, str]) -> str:
    """The same of any prelude: name -> source."""
    wanted: set[str] = set()
    todo = _called(body, prelude)
    while todo:
        name = todo.pop()
        if name not in wanted:
            wanted.add(name)
            todo |= _called(prelude[name].split("):", 1)[1], prelude)
    return "".join(f"\n\n{source}\n" for name, source in prelude.items() if name in wanted)


def _called(text: str, prelude: Mapping[str, str]) -> set[str]:
    return {name for name in prelude if re.search(rf"\b{name}\(", text)}


SOURCE = {
    match[1]: match[0].rstrip()
    for match in re.finditer(r"@triton\.jit\ndef (\w+)(?:(?!@triton).)*", _PRELUDE, re.DOTALL)
}
