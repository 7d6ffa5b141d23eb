"""Owns the defects of data: what is copied where, in which shape, and what enters a GEMM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from harness.tl import syntax as s
from harness.tl.mutate_parts import altered, exchanged, is_number, named, shifted, sources
from harness.tl.mutate_tree import Edit, Family, Site, Tree
from harness.tl.syntax import Expr, Level

FAMILY = Family()
_kind = FAMILY.kind
_ROW_SIZES, _WIDTHS = ("seq_q", "seq_k"), ("dim", "dim_v")


def _gemms(tree: Tree) -> Iterator[tuple[Site, s.Compute]]:
    return ((site, st) for site, st in tree.all(s.Compute) if st.op == "GEMM" and len(st.operands) == 2)


def _with_operand(st: s.Compute, at: int, new: Expr) -> s.Compute:
    return replace(st, operands=(*st.operands[:at], new, *st.operands[at + 1 :]))


# --- GEMM and Reshape -------------------------------------------------------------------------------------


@_kind("the Reshape between two GEMMs is forgotten")
def reshape_dropped(tree: Tree) -> Iterator[Edit]:
    for site, _ in tree.all(s.Reshape):
        yield tree.drop(site)


@_kind("a Reshape names the wrong layout")
def reshape_layout(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Reshape):
        yield tree.put(site, replace(st, source=st.target, target=st.source))
        yield tree.put(site, replace(st, target=(s.Name("MMA_B"), *st.target[1:])))
        yield tree.put(site, replace(st, target=st.source))


@_kind("a Reshape of another tile than the one that enters the GEMM")
def reshape_wrong_tile(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Reshape):
        for name in sorted((tree.accumulators | _scores(tree)) - {st.name}):
            yield tree.put(site, replace(st, name=name))


def _scores(tree: Tree) -> set[str]:
    """Register matrices that are no accumulator."""
    registers = [st for _, st in tree.all(s.Allocate) if st.level is Level.REGISTER and len(st.shape) == 2]
    return {st.name for st in registers if st.init is None}


@_kind("a transposed operand is not transposed")
def transpose_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in _gemms(tree):
        for at, x in enumerate(st.operands):
            if isinstance(x, s.Transpose):
                yield tree.put(site, _with_operand(st, at, x.x))


@_kind("an operand is transposed that should not be")
def transpose_added(tree: Tree) -> Iterator[Edit]:
    for site, st in _gemms(tree):
        for at, x in enumerate(st.operands):
            if not isinstance(x, s.Transpose):
                yield tree.put(site, _with_operand(st, at, s.Transpose(x)))


@_kind("the operands of a GEMM change places")
def operands_swapped(tree: Tree) -> Iterator[Edit]:
    for site, st in _gemms(tree):
        yield tree.put(site, replace(st, operands=st.operands[::-1]))


@_kind("keys for values, or values for keys, in a GEMM")
def operand_confused(tree: Tree) -> Iterator[Edit]:
    for site, st in _gemms(tree):
        for a, b in (("K", "V"), ("V", "K"), ("Q", "K")):
            for new in altered(st, exchanged(a, b), "operands"):
                yield tree.put(site, new)


@_kind("a GEMM overwrites what it should add to")
def get_for_accumulate(tree: Tree) -> Iterator[Edit]:
    for site, st in _gemms(tree):
        if st.accumulate:
            yield tree.put(site, replace(st, accumulate=None, get=(s.Get(st.accumulate),)))


@_kind("a GEMM adds to what it should overwrite")
def accumulate_for_get(tree: Tree) -> Iterator[Edit]:
    for site, st in _gemms(tree):
        if st.get:
            yield tree.put(site, replace(st, accumulate=st.get[0].name, get=()))


@_kind("a GEMM is left out")
def gemm_dropped(tree: Tree) -> Iterator[Edit]:
    for site, _ in _gemms(tree):
        yield tree.drop(site)


# --- copies -----------------------------------------------------------------------------------------------


@_kind("a copy into fast memory is left out")
def copy_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        if st.target is not Level.GLOBAL:
            yield tree.drop(site)


@_kind("a copy goes the other way")
def copy_levels_swapped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        yield tree.put(site, replace(st, source=st.target, target=st.source))


@_kind("a copy names a level where the tile is not")
def copy_wrong_level(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        if st.target is Level.GLOBAL:
            yield tree.put(site, replace(st, source=Level.SHARED))


@_kind("a tile is copied after its first use")
def copy_after_use(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        use = next((n for n in site.after() if st.name in sources(tree.at(n))), None)
        if use is not None:
            yield tree.move_after(site, use)


@_kind("a copy comes from the wrong block")
def coordinate_wrong(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        indices = (*tree.grid, *(loop.var for loop in site.loops))
        for at, (axis, value) in enumerate(st.coordinate):
            others: list[Expr] = [s.Name(x) for x in indices if not named(value, x)]
            for new in (*others, s.Num(0), shifted(value, 1)):
                pairs = (*st.coordinate[:at], (axis, new), *st.coordinate[at + 1 :])
                yield tree.put(site, replace(st, coordinate=pairs))


@_kind("a copy does not say which block it takes")
def coordinate_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        if st.coordinate:
            yield tree.put(site, replace(st, coordinate=()))


@_kind("blocks are counted along columns for rows, or elements for blocks")
def coordinate_axis(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Copy):
        for axis in ("C", "row"):
            if st.coordinate:
                yield tree.put(site, replace(st, coordinate=tuple((axis, e) for _, e in st.coordinate)))


# --- stores -----------------------------------------------------------------------------------------------


def _stores(tree: Tree) -> Iterator[tuple[Site, s.Copy]]:
    return ((site, st) for site, st in tree.all(s.Copy) if st.target is Level.GLOBAL)


@_kind("the result is never stored")
def store_dropped(tree: Tree) -> Iterator[Edit]:
    for site, _ in _stores(tree):
        yield tree.drop(site)


@_kind("the result is stored before it is finished, inside the loop or before the division")
def store_early(tree: Tree) -> Iterator[Edit]:
    for site, _ in _stores(tree):
        for n in site.before()[:2]:
            before = tree.at(n)
            if isinstance(before, s.For):
                yield tree.move_after(site, n + sum(1 for _ in s.statements(before.body)))
            elif isinstance(before, s.Compute | s.Infix):
                yield tree.move_before(site, n)


@_kind("a block is stored where its neighbour belongs as well")
def store_twice(tree: Tree) -> Iterator[Edit]:
    for site, st in _stores(tree):
        moved = replace(st, coordinate=tuple((axis, shifted(e, 1)) for axis, e in st.coordinate))
        yield tree.edit(site, "a second store, one block further on", after={site.number: (moved,)})


# --- offsets ----------------------------------------------------------------------------------------------


def _offsets(tree: Tree) -> Iterator[tuple[Site, s.Allocate]]:
    return ((site, st) for site, st in tree.all(s.Allocate) if st.offset)


@_kind("a query head indexes the key and value heads that heads share")
def offset_group_dropped(tree: Tree) -> Iterator[Edit]:
    for site, st in _offsets(tree):
        last = st.offset[-1]
        if isinstance(last, s.Binary) and last.op == "//" and named(last.right, "group"):
            yield tree.put(site, replace(st, offset=(*st.offset[:-1], last.left)))
        elif is_number(last, 0) and "h" in tree.grid:
            yield tree.put(site, replace(st, offset=(*st.offset[:-1], s.Name("h"))))


@_kind("a tensor with a head of its own is indexed as if heads shared it")
def offset_group_added(tree: Tree) -> Iterator[Edit]:
    for site, st in _offsets(tree):
        last = st.offset[-1]
        if isinstance(last, s.Name):
            shared = s.Binary("//", last, s.Name("group"))
            yield tree.put(site, replace(st, offset=(*st.offset[:-1], shared)))


@_kind("heads that share keys are taken to be interleaved, not consecutive")
def offset_interleaved(tree: Tree) -> Iterator[Edit]:
    for site, st in _offsets(tree):
        last = st.offset[-1]
        if isinstance(last, s.Binary) and last.op == "//" and named(last.right, "group"):
            spread = s.Binary("%", last.left, s.Name("kv_heads"))
            yield tree.put(site, replace(st, offset=(*st.offset[:-1], spread)))


@_kind("batch and head change places in an offset")
def offset_swapped(tree: Tree) -> Iterator[Edit]:
    for site, st in _offsets(tree):
        yield tree.put(site, replace(st, offset=st.offset[::-1]))


@_kind("an offset is 0 for all blocks")
def offset_zero(tree: Tree) -> Iterator[Edit]:
    for site, st in _offsets(tree):
        for at, entry in enumerate(st.offset):
            if not is_number(entry, 0):
                yield tree.put(site, replace(st, offset=(*st.offset[:at], s.Num(0), *st.offset[at + 1 :])))


# --- shapes -----------------------------------------------------------------------------------------------


def _shaped(tree: Tree) -> Iterator[tuple[Site, s.Allocate | s.Copy]]:
    """Tiles, as they are allocated and copied."""
    for site, st in tree.all(s.Allocate):
        if st.level is not Level.GLOBAL:
            yield site, st
    yield from tree.all(s.Copy)


@_kind("a tile has the rows of another: BM for BN")
def tile_rows(tree: Tree) -> Iterator[Edit]:
    for site, st in _shaped(tree):
        for a in tree.parameters:
            for b in tree.parameters:
                for new in altered(st, exchanged(a, b), "shape") if a != b else ():
                    yield tree.put(site, new)


@_kind("a tile has the width of another: dim for dim_v")
def tile_columns(tree: Tree) -> Iterator[Edit]:
    for site, st in _shaped(tree):
        for a, b in (_WIDTHS, _WIDTHS[::-1]):
            for new in altered(st, exchanged(a, b), "shape"):
                yield tree.put(site, new)


@_kind("a tile's rows and columns change places")
def tile_transposed(tree: Tree) -> Iterator[Edit]:
    for site, st in _shaped(tree):
        if len(st.shape) == 2:
            yield tree.put(site, replace(st, shape=st.shape[::-1]))


@_kind("a tensor is given the length or the width of another")
def matrix_extent(tree: Tree) -> Iterator[Edit]:
    for site, st in tree.all(s.Allocate):
        if st.level is Level.GLOBAL:
            for a, b in (_ROW_SIZES, _ROW_SIZES[::-1], _WIDTHS, _WIDTHS[::-1]):
                for new in altered(st, exchanged(a, b), "shape"):
                    yield tree.put(site, new)
