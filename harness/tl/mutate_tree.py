"""Owns cutting and grafting the statements of a syntax tree, by their number.

A mutation is written as a generator over a `Tree` that yields `Edit`s; a `Family` collects them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

from harness.tl import syntax as s
from harness.tl.format import format_statement
from harness.tl.mutate_parts import Rule, altered, is_minus_infinity, is_number
from harness.tl.syntax import Statement

T = TypeVar("T", bound=Statement)


class Edit(NamedTuple):
    """A changed program: where, what was done in a few words, and the result."""

    line: int
    title: str
    program: s.Program


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of defect: its name, one sentence, and all ways to plant it in a program."""

    name: str
    description: str
    edits: Callable[[Tree], Iterator[Edit]]


@dataclass(slots=True)
class Family:
    """The kinds that one module defines, in order."""

    kinds: list[Kind] = field(default_factory=list)

    def kind(
        self, description: str
    ) -> Callable[[Callable[[Tree], Iterator[Edit]]], Callable[[Tree], Iterator[Edit]]]:
        """Adds the decorated generator, under its own name."""

        def add(edits: Callable[[Tree], Iterator[Edit]]) -> Callable[[Tree], Iterator[Edit]]:
            self.kinds.append(Kind(edits.__name__, description, edits))
            return edits

        return add


@dataclass(frozen=True, slots=True)
class Site:
    """A statement's place: its number in the order of the text, the block it is in, the loops around it."""

    number: int
    block: tuple[int, ...]  # numbers of all statements of its block
    loops: tuple[s.For, ...]  # outermost first

    def after(self) -> tuple[int, ...]:
        """Numbers of the statements of its block that follow it."""
        return tuple(n for n in self.block if n > self.number)

    def before(self) -> tuple[int, ...]:
        """Numbers of the statements of its block that precede it, the nearest first."""
        return tuple(n for n in reversed(self.block) if n < self.number)


class Tree:
    """A program whose statements are numbered in the order of the text."""

    def __init__(self, program: s.Program) -> None:
        self.program = program
        self.statements: list[Statement] = []
        self._sites: list[Site] = []
        for kernel in program.kernels:
            self._number(kernel.body, ())

    def _number(self, body: tuple[Statement, ...], loops: tuple[s.For, ...]) -> None:
        block: list[int] = []
        entries: list[tuple[int, Statement]] = []
        at = len(self.statements)
        for st in body:  # numbers in pre-order are known before the block is
            block.append(at)
            entries.append((at, st))
            at += 1 + sum(1 for part in _bodies(st) for _ in s.statements(part))
        for number, st in entries:
            assert number == len(self.statements)
            self.statements.append(st)
            self._sites.append(Site(number, tuple(block), loops))
            inner = (*loops, st) if isinstance(st, s.For) else loops
            for part in _bodies(st):
                self._number(part, inner)

    # --- looking ---

    def all(self, kind: type[T]) -> Iterator[tuple[Site, T]]:
        """Every statement of a class with its place."""
        for site, st in zip(self._sites, self.statements, strict=True):
            if isinstance(st, kind):
                yield site, st

    def at(self, number: int) -> Statement:
        return self.statements[number]

    def site(self, number: int) -> Site:
        return self._sites[number]

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the tile parameters."""
        return tuple(name for _, st in self.all(s.Tile) for name, _ in st.parameters)

    @cached_property
    def grid(self) -> tuple[str, ...]:
        return tuple(name for _, st in self.all(s.Grid) for name, _ in st.axes)

    @cached_property
    def maxima(self) -> frozenset[str]:
        """Vectors that start at -inf: running maxima."""
        return frozenset(st.name for _, st in self.states() if is_minus_infinity(st.init))

    @cached_property
    def sums(self) -> frozenset[str]:
        """Vectors that start at 0: running sums."""
        return frozenset(st.name for _, st in self.states() if len(st.shape) == 1 and is_number(st.init, 0))

    @cached_property
    def accumulators(self) -> frozenset[str]:
        """Matrices that start at 0."""
        return frozenset(st.name for _, st in self.states() if len(st.shape) == 2 and is_number(st.init, 0))

    def states(self) -> Iterator[tuple[Site, s.Allocate]]:
        """Allocations with a start value."""
        return ((site, st) for site, st in self.all(s.Allocate) if st.init is not None)

    def work(self) -> Iterator[tuple[Site, s.Compute | s.Infix]]:
        """Every statement that computes."""
        yield from self.all(s.Compute)
        yield from self.all(s.Infix)

    # --- changing ---

    def edit(
        self,
        site: Site,
        title: str,
        put: Mapping[int, tuple[Statement, ...]] | None = None,
        before: Mapping[int, tuple[Statement, ...]] | None = None,
        after: Mapping[int, tuple[Statement, ...]] | None = None,
    ) -> Edit:
        """The program with statements put in place of some, before and after some, by number."""
        kernels, number = [], 0
        for kernel in self.program.kernels:
            body = _rebuilt(kernel.body, number, put or {}, before or {}, after or {})
            number += sum(1 for _ in s.statements(kernel.body))
            kernels.append(replace(kernel, body=body))
        return Edit(self.at(site.number).pos.line, title, s.Program(tuple(kernels)))

    def put(self, site: Site, new: Statement) -> Edit:
        """Another statement in its place."""
        title = f"`{format_statement(self.at(site.number))}` becomes `{format_statement(new)}`"
        return self.edit(site, title, {site.number: (new,)})

    def infix_by(self, rule: Rule) -> Iterator[Edit]:
        """Every infix statement with one part of its expression replaced."""
        for site, st in self.all(s.Infix):
            for new in altered(st, rule):
                yield self.put(site, new)

    def drop(self, site: Site) -> Edit:
        return self.edit(site, f"no `{format_statement(self.at(site.number))}`", {site.number: ()})

    def twice(self, site: Site) -> Edit:
        st = self.at(site.number)
        return self.edit(site, f"`{format_statement(st)}` twice", after={site.number: (st,)})

    def move_after(self, site: Site, number: int) -> Edit:
        """The statement after another one, anywhere outside itself."""
        st = self.at(site.number)
        title = f"`{format_statement(st)}` after `{format_statement(self.at(number))}`"
        return self.edit(site, title, {site.number: ()}, after={number: (st,)})

    def move_before(self, site: Site, number: int) -> Edit:
        st = self.at(site.number)
        title = f"`{format_statement(st)}` before `{format_statement(self.at(number))}`"
        return self.edit(site, title, {site.number: ()}, before={number: (st,)})


def _bodies(st: Statement) -> tuple[tuple[Statement, ...], ...]:
    match st:
        case s.For(body=body):
            return (body,)
        case s.If(then=then, otherwise=otherwise):
            return (then, otherwise)
        case _:
            return ()


def _rebuilt(
    body: tuple[Statement, ...],
    number: int,
    put: Mapping[int, tuple[Statement, ...]],
    before: Mapping[int, tuple[Statement, ...]],
    after: Mapping[int, tuple[Statement, ...]],
) -> tuple[Statement, ...]:
    out: list[Statement] = []
    for st in body:
        own, number = number, number + 1
        parts = []
        for part in _bodies(st):
            parts.append(_rebuilt(part, number, put, before, after))
            number += sum(1 for _ in s.statements(part))
        same: Statement = st
        if isinstance(st, s.For):
            same = replace(st, body=parts[0])
        elif isinstance(st, s.If):
            same = replace(st, then=parts[0], otherwise=parts[1])
        out += (*before.get(own, ()), *put.get(own, (same,)), *after.get(own, ()))
    return tuple(out)
