"""Owns the proof that a block's roles come to an end and lose nothing: their events, in many interleavings.

Barriers, turns and copies behave as on Hopper: a barrier has a phase of which only the parity is seen, a
copy ends some time after it starts. Each role is once held back as long as any other can go on; the copies
of each channel once end as late as they can; then interleavings are drawn from a seed. Roles wait for each
other only by counts that grow, so a role that is held back meets the worst that the others can do to what it
still has to read, and a copy that is late meets every reader and writer that does not wait for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.tl.events import (
    Arrive,
    Begin,
    Drain,
    End,
    Event,
    Fill,
    Protocol,
    Send,
    Signal,
    Sync,
    Wait,
    Write,
    consumer,
)

_DRAWN = 2  # interleavings drawn from the seed
_Reads = dict[tuple[str, int], dict[str, int]]  # place and fill -> how often each role reads it


class Fate(StrEnum):
    """What goes wrong."""

    DEADLOCK = "deadlock"  # all roles that are not done wait
    OVERWRITTEN = "overwritten"  # a place is filled while a reader may still read it
    STALE = "stale"  # a place holds something else than its reader expects
    UNEVEN = "uneven"  # consumers take turns a different number of times, or two have the turn


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, in words that say who waits for what."""

    fate: Fate
    message: str


class _Failed(Exception):
    def __init__(self, fate: Fate, message: str) -> None:
        self.fault = Fault(fate, message)


def replay(protocol: Protocol, seed: int = 0, drawn: int = _DRAWN) -> Fault | None:
    """The first fault of any interleaving that is tried, or None."""
    try:
        _compare_turns(protocol)
        names = list(protocol.roles)
        unread = _reads(protocol)
        for name in names:
            others = [n for n in names if n != name]
            _Run(protocol, unread).preferring([*others, name])
        for channel in _copied(protocol):
            _Run(protocol, unread, late=channel).preferring(names)
        for number in range(drawn):
            _Run(protocol, unread).drawing(random.Random(f"{seed} {number}"))
    except _Failed as failed:
        return failed.fault
    return None


def _compare_turns(protocol: Protocol) -> None:
    turns = {
        name: sum(isinstance(e, Sync) for e in events)
        for name, events in protocol.roles.items()
        if any(isinstance(e, Sync | Signal) for e in events)
    }
    if len(set(turns.values())) > 1:
        words = ", ".join(f"{name} {n}" for name, n in turns.items())
        raise _Failed(Fate.UNEVEN, f"consumers take turns a different number of times: {words}")


def _reads(protocol: Protocol) -> _Reads:
    found: _Reads = {}
    for name, events in protocol.roles.items():
        for event in events:
            if isinstance(event, End):
                by_role = found.setdefault((event.place, event.tag), {})
                by_role[name] = by_role.get(name, 0) + 1
    return found


def _copied(protocol: Protocol) -> list[str]:
    """The channels that copies go into or out of."""
    every = (e for events in protocol.roles.values() for e in events if isinstance(e, Fill | Send))
    return list(dict.fromkeys(_channel(e) for e in every))


def _channel(copy: Fill | Send) -> str:
    return copy.place.partition("[")[0]


class _Run:
    """One interleaving: where each role stands, and the state of barriers, places, turns and copies."""

    def __init__(self, protocol: Protocol, unread: _Reads, late: str = "") -> None:
        self.roles = protocol.roles
        self.arrivals = protocol.arrivals
        self.late = late  # the channel whose copies end only where nothing else can go on
        self.at = dict.fromkeys(protocol.roles, 0)
        self.phase = dict.fromkeys(protocol.arrivals, 0)
        self.arrived = dict.fromkeys(protocol.arrivals, 0)
        self.content: dict[str, int | None] = {}  # None: a copy into it is under way
        self.copies: list[tuple[str, Fill | Send]] = []
        self.turns: set[int] = set()
        self.unread = {key: dict(by_role) for key, by_role in unread.items()}

    def preferring(self, order: Sequence[str]) -> None:
        """Runs to the end; of the roles that can go on, the first in this order does."""
        last = order[-1]
        while True:
            self._land_early()
            for name in order:
                moved = self._step(name)
                while moved and name != last and self._step(name):
                    pass
                if moved:
                    break
            else:
                if not self._land(0):
                    break
        self._settle()

    def drawing(self, generator: random.Random) -> None:
        """Runs to the end; who goes on is drawn, and copies end when it is their lot."""
        names = list(self.roles)
        while True:
            generator.shuffle(names)
            if self.copies and generator.random() < 0.25:
                self._land(generator.randrange(len(self.copies)))
            for name in names:
                if self._step(name):
                    break
            else:
                if not self._land(generator.randrange(len(self.copies)) if self.copies else 0):
                    break
        self._settle()

    def _step(self, name: str) -> bool:
        """Takes the role's next event, if it can happen now."""
        at = self.at[name]
        events = self.roles[name]
        if at == len(events) or not self._take(name, events[at]):
            return False
        self.at[name] = at + 1
        return True

    def _take(self, name: str, event: Event) -> bool:
        if isinstance(event, Wait):
            return self.phase[event.barrier] & 1 != event.parity
        if isinstance(event, Begin):
            self._expect(name, event.place, event.tag)
        elif isinstance(event, End):
            self._expect(name, event.place, event.tag)
            self.unread[event.place, event.tag][name] -= 1
        elif isinstance(event, Arrive):
            self._arrive(event.barrier)
        elif isinstance(event, Fill):
            self._replace(name, event.place, event.tag)
            self.content[event.place] = None
            self.copies.append((name, event))
        elif isinstance(event, Write):
            self._replace(name, event.place, event.tag)
            self.content[event.place] = event.tag
        elif isinstance(event, Send):
            self.copies.append((name, event))
        elif isinstance(event, Drain):
            return not any(n == name and isinstance(c, Send) for n, c in self.copies)
        elif isinstance(event, Sync):
            if event.turn not in self.turns:
                return False
            self.turns.remove(event.turn)
        else:
            if event.turn in self.turns:
                words = f"{name} gives {consumer(event.turn)} a turn that it already has"
                raise _Failed(Fate.UNEVEN, words)
            self.turns.add(event.turn)
        return True

    def _arrive(self, barrier: str) -> None:
        count = self.arrived[barrier] + 1
        if count == self.arrivals[barrier]:
            self.phase[barrier] += 1
            count = 0
        self.arrived[barrier] = count

    def _expect(self, name: str, place: str, tag: int) -> None:
        held = self.content.get(place)
        if held != tag:
            what = "nothing that is complete" if held is None else f"fill {held}"
            raise _Failed(Fate.STALE, f"{name} reads fill {tag} of `{place}`, which holds {what}")

    def _replace(self, name: str, place: str, tag: int) -> None:
        held = self.content.get(place)
        if held is None and place in self.content:
            raise _Failed(Fate.OVERWRITTEN, f"{name} fills `{place}` while a copy into it is under way")
        if held is not None and held != tag:
            reader = next((n for n, left in self.unread.get((place, held), {}).items() if left), None)
            if reader is not None:
                words = f"{name} fills `{place}` again while {reader} has yet to read fill {held}"
                raise _Failed(Fate.OVERWRITTEN, words)
        if any(isinstance(c, Send) and c.place == place for _, c in self.copies):
            raise _Failed(Fate.OVERWRITTEN, f"{name} writes `{place}` while it is copied out")

    def _land(self, number: int) -> bool:
        """A copy that is under way ends."""
        if not self.copies:
            return False
        _, copy = self.copies.pop(number)
        if isinstance(copy, Fill):
            self.content[copy.place] = copy.tag
            self._arrive(copy.barrier)
        return True

    def _land_early(self) -> None:
        """The copies that are not held back end."""
        number = 0
        while number < len(self.copies):
            if self.late == _channel(self.copies[number][1]):
                number += 1
            else:
                self._land(number)

    def _settle(self) -> None:
        """Nothing can go on: everyone is done, or waits for another."""
        waiting = {n: self.roles[n][at] for n, at in self.at.items() if at < len(self.roles[n])}
        if not waiting:
            return
        words = "; ".join(f"{name} waits {_reason(event)}" for name, event in waiting.items())
        raise _Failed(Fate.DEADLOCK, words)


def _reason(event: Event) -> str:
    match event:
        case Wait(barrier):
            place, _, state = barrier.rpartition(" ")
            return f"for `{place}` to be {'filled' if state == 'full' else 'released'}"
        case Sync():
            return "for its turn"
    return "for its copies to end"
