"""Owns planting defects: takes a correct program and gives it back with exactly one thing wrong.

It is made on the syntax tree, in every place where a kind applies, in a fixed order. Some of what is
planted turns out to change nothing (a bound that only saves work, a group of one head): whether a
mutant is wrong is for the interpreter to say, see `mutation_figures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.tl import mutate_control, mutate_data, mutate_scores, mutate_softmax, mutate_words, syntax
from harness.tl.mutate_tree import Kind, Tree

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for module in (mutate_data, mutate_control, mutate_softmax, mutate_scores, mutate_words)
    for kind in module.FAMILY.kinds
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A program with one defect. `line`: of the statement that was changed, in the original's text."""

    kind: str
    title: str
    program: syntax.Program
    line: int


def mutants(program: syntax.Program) -> Iterator[Mutant]:
    """Every mutant of every kind; each differs from the program and from the others of its kind."""
    tree = Tree(program)
    for kind in KINDS.values():
        seen = {program}
        for edit in kind.edits(tree):
            if edit.program not in seen:
                seen.add(edit.program)
                yield Mutant(kind.name, edit.title, edit.program, edit.line)
