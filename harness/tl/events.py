"""Owns the events that the roles of a block go through: on barriers, on places, on turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRODUCER = "producer"


@dataclass(frozen=True, slots=True)
class Wait:
    """Until the barrier's phase of that parity is complete, as `mbarrier.try_wait.parity` does."""

    barrier: str
    parity: int


@dataclass(frozen=True, slots=True)
class Arrive:
    barrier: str


@dataclass(frozen=True, slots=True)
class Fill:
    """Starts a copy into the place; when it is done the barrier is arrived at."""

    place: str
    tag: int
    barrier: str


@dataclass(frozen=True, slots=True)
class Write:
    """The role itself writes the place."""

    place: str
    tag: int


@dataclass(frozen=True, slots=True)
class Begin:
    """A read of the place starts, and expects that content."""

    place: str
    tag: int


@dataclass(frozen=True, slots=True)
class End:
    place: str
    tag: int


@dataclass(frozen=True, slots=True)
class Send:
    """Starts a copy out of the place."""

    place: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Until the role's copies out of places have read them."""


@dataclass(frozen=True, slots=True)
class Sync:
    """Until it is this consumer's turn."""

    turn: int


@dataclass(frozen=True, slots=True)
class Signal:
    """The turn goes to that consumer."""

    turn: int


Event = Wait | Arrive | Fill | Write | Begin | End | Send | Drain | Sync | Signal


@dataclass(frozen=True, slots=True)
class Protocol:
    """What each role does, in order, and how many arrivals complete a phase of each barrier."""

    roles: Mapping[str, tuple[Event, ...]]
    arrivals: Mapping[str, int]


def consumer(number: int) -> str:
    """The name of a consumer's role."""
    return f"consumer {number}"
