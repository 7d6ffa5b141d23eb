"""Owns the arguments of a generated Triton kernel: which it has, in which order, and which are constexprs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from harness.tl import ir
from harness.tl.lower.triton_loops import KernelText
from harness.tl.lower.triton_memory import Access

_CONSTEXPR_SIZES = ("dim", "dim_v", "group")
_SETTINGS = ("OPERAND", "PRECISION", "TMA", "FOLD", "OVERLAP")


@dataclass(frozen=True, slots=True)
class Signature:
    """What a kernel takes, in order: matrices with their strides, scalars, factors of scores, constexprs."""

    matrices: tuple[tuple[Access, tuple[str, ...]], ...]
    scalars: tuple[str, ...]
    factors: tuple[str, ...]
    constants: tuple[str, ...]

    @classmethod
    def of(cls, program: ir.Program, text: KernelText, scalars: Iterable[str]) -> Signature:
        """The arguments that occur in the kernel's text; `scalars` are the symbols of the task."""
        words = set(re.findall(r"[A-Za-z_]\w*", "\n".join(text.lines)))
        sizes = [n for size in text.sizes.values() for n in (size, f"{size}_p")]
        tiles = [name for name, _ in program.parameters]
        constants = dict.fromkeys([*_CONSTEXPR_SIZES, *sizes, *tiles, *text.evens, *_SETTINGS])
        return cls(
            tuple((a, tuple(s for s in a.strides if s in words)) for a in text.accesses.all()),
            tuple(s for s in scalars if s in words and s not in _CONSTEXPR_SIZES),
            tuple(f for f in text.factors if f in words),
            tuple(c for c in constants if c in words),
        )

    @property
    def groups(self) -> list[list[str]]:
        """The parameters as they are declared, those that belong together in a list."""
        return [
            *([access.argument, *strides] for access, strides in self.matrices),
            [*self.scalars, *self.factors],
            [f"{constant}: tl.constexpr" for constant in self.constants],
        ]
