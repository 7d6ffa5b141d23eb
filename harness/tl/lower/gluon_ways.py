"""Owns which optional parts a candidate's code needs: those that its choices turn on somewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

from harness.tl.schedule import Schedule

_OFF = Schedule().choice


@dataclass(frozen=True, slots=True)
class Ways:
    """Of each key in `schedule.OPTIONAL`, whether it is on in some of the choices."""

    q_stages: bool = False
    ahead: bool = False
    carry: bool = False
    arrivals: bool = False
    rescale: bool = False
    reuse: bool = False

    @classmethod
    def of(cls, choices: Iterable[Mapping[str, int]]) -> Ways:
        """What any of the choices asks for; a key that none asks for leaves no trace in the code."""
        found = list(choices)
        return cls(**{f.name: any(c[f.name] != _OFF[f.name] for c in found) for f in fields(cls)})

    @property
    def used(self) -> frozenset[str]:
        """The keys that are on somewhere."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name))
