"""Owns the sequence of events of each role of a block: waits, copies, reads and releases, tile after tile.

The producer copies in the order of the text. A consumer waits for a place to be full before it first reads
it and releases it after its last read. With `overlap` the first products of a round are issued before the
rest of the round before. With `reuse` a result is written to the place that its query rows came to, which is
released when the copy out has read it. A round in which the mask leaves nothing to a consumer's 64 rows is
skipped: its places are waited for and released, and its turn is taken and given on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.tl import ir
from harness.tl.channels import SLOT, Channel, Kind
from harness.tl.events import (
    PRODUCER,
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
from harness.tl.schedule import Schedule
from harness.tl.trace import Item, Made, Round, Rounds, Trace, Use, Written


@dataclass(slots=True)
class _Consumer:
    """Collects one consumer's events; `left` counts the reads of each fill that are still to come.

    A fill that it never reads, in a round that is skipped above all, is no key there.
    """

    number: int
    schedule: Schedule
    results: frozenset[ir.Tile | None] = frozenset()  # tiles whose places results leave through
    events: list[Event] = field(default_factory=list)
    waited: set[tuple[str, int]] = field(default_factory=set)
    left: dict[tuple[str, int], int] = field(default_factory=dict)
    # places that results take, with the fill
    kept: dict[ir.Tile | None, tuple[Channel, int]] = field(default_factory=dict)

    def place(self, channel: Channel, fill: int) -> str:
        owner = f" of {consumer(self.number)}" if channel.split else ""
        return f"{channel.name}[{fill % channel.places}]{owner}"

    def tile(self, items: tuple[Item, ...]) -> None:
        """The events of one tile."""
        self._count(items)
        self._items(items)

    def _count(self, items: tuple[Item, ...]) -> None:
        for item in items:
            if isinstance(item, Use):
                for channel, fill in item.reads:
                    self.left[channel.name, fill] = self.left.get((channel.name, fill), 0) + 1
            elif isinstance(item, Rounds):
                for r in item.rounds:
                    if self.number not in r.dead:
                        self._count(r.head + r.rest)

    def _items(self, items: tuple[Item, ...], turn: bool = False) -> None:
        """In order, each read finished before the next; the first product takes a turn."""
        for item in items:
            if isinstance(item, Rounds):
                self._rounds(item)
            elif isinstance(item, Use):
                own = turn and item.product
                self._await(item)
                self._turn(own)
                self._begin(item)
                self._give(own)
                self._finish(item)
                turn = turn and not own
            else:
                self._other(item)

    def _rounds(self, loop: Rounds) -> None:
        turn = loop.turns and bool(self.schedule.pingpong)
        waiting: tuple[Item, ...] | None = None  # the rest of the round before
        for r in loop.rounds:
            if self.number in r.dead:
                if waiting is not None:
                    self._items(waiting)
                    waiting = None
                self._skip(r, turn)
            elif not loop.rotates:
                self._items(r.head + r.rest, turn)
            elif waiting is None:
                self._items(r.head, turn)
                waiting = r.rest
            else:
                self._together(r.head, waiting, turn)
                waiting = r.rest
        if waiting is not None:
            self._items(waiting)

    def _together(self, head: tuple[Item, ...], rest: tuple[Item, ...], turn: bool) -> None:
        """This round's first products, then the rest of the round before, then the waits for both."""
        first = [item for item in head if isinstance(item, Use)]
        for use in first:
            self._await(use)
        self._turn(turn)
        for use in first:
            self._begin(use)
        later = []
        for item in rest:
            if isinstance(item, Use):
                self._await(item)
                self._begin(item)
                later.append(item)
            else:
                self._other(item)
        self._give(turn)
        for use in (*first, *later):
            self._finish(use)
        for item in head:
            if not isinstance(item, Use):
                self._other(item)

    def _skip(self, r: Round, turn: bool) -> None:
        for item in _made(r.head + r.rest):
            self._full(item.channel, item.fill)
            self._turn(turn)
            self._give(turn)
            turn = False
            self._other(item)
        self._turn(turn)
        self._give(turn)

    def _other(self, item: Item) -> None:
        match item:
            case Made(channel, fill) if (channel.name, fill) not in self.left:
                self._full(channel, fill)
                self._release(channel, fill)
            case Written(channel, tag) if channel.through is not None:
                rows, fill = self.kept[channel.through]
                place = self.place(rows, fill)
                self.events += [Write(place, -1 - tag), Send(place), Drain(), Arrive(f"{place} empty")]
            case Written(channel, tag) if channel.kind is Kind.OUTPUT:
                place = self.place(channel, tag)
                self.events += [Drain(), Write(place, tag), Send(place)]
            case Written(channel, tag):
                self.events.append(Write(self.place(channel, tag), tag))

    def _full(self, channel: Channel, fill: int) -> None:
        if channel.kind is Kind.OWN or (channel.name, fill) in self.waited:
            return
        self.waited.add((channel.name, fill))
        self.events.append(Wait(f"{self.place(channel, fill)} full", fill // channel.places & 1))

    def _await(self, use: Use) -> None:
        for channel, fill in use.reads:
            self._full(channel, fill)

    def _begin(self, use: Use) -> None:
        self.events += [Begin(self.place(c, fill), fill) for c, fill in use.reads]

    def _finish(self, use: Use) -> None:
        for channel, fill in use.reads:
            self.events.append(End(self.place(channel, fill), fill))
            self.left[channel.name, fill] -= 1
            if not self.left[channel.name, fill] and channel.kind is not Kind.OWN:
                self._release(channel, fill)

    def _release(self, channel: Channel, fill: int) -> None:
        """The place is read no more: it can be filled again, or a result takes it."""
        if channel.tile in self.results:
            self.kept[channel.tile] = channel, fill
        else:
            self.events.append(Arrive(f"{self.place(channel, fill)} empty"))

    def _turn(self, on: bool) -> None:
        if on:
            self.events.append(Sync(self.number))

    def _give(self, on: bool) -> None:
        if on:
            self.events.append(Signal((self.number + 1) % self.schedule.consumers))


def _made(items: tuple[Item, ...]) -> Iterator[Made]:
    for item in items:
        if isinstance(item, Made):
            yield item
        elif isinstance(item, Rounds):
            yield from _made(tuple(i for r in item.rounds for i in r.head + r.rest))


def protocol(kernel: ir.Kernel, schedule: Schedule, points: Sequence[Mapping[str, object]]) -> Protocol:
    """What the roles of one block do that works on these grid points in turn.

    A point gives the value of every symbol: sizes, tile parameters, grid indices. Raises KeyError and
    ValueError where a bound cannot be computed.
    """
    trace = Trace(kernel, schedule)
    several = schedule.consumers
    results = frozenset(c.through for c in trace.channels if c.through is not None)
    consumers = [_Consumer(n, schedule, results) for n in range(several)]
    producer: list[Event] = []
    slot = next((c for c in trace.channels if c.kind is Kind.SLOT), None)
    if schedule.pingpong:
        consumers[-1].events.append(Signal(0))
    for number, point in enumerate(points):
        items = trace.walk(trace.kernel.body, dict(point))
        for made in trace.copies:
            for place in dict.fromkeys(c.place(made.channel, made.fill) for c in consumers):
                producer += [
                    Wait(f"{place} empty", made.fill // made.channel.places & 1 ^ 1),
                    Fill(place, made.fill, f"{place} full"),
                ]
        trace.copies.clear()
        if slot is not None:
            producer += [
                Wait(f"{SLOT} empty", number & 1 ^ 1),
                Write(SLOT, number),
                Arrive(f"{SLOT} full"),
            ]
        for c in consumers:
            c.tile(items)
            if slot is not None:
                c.events += [Wait(f"{SLOT} full", number & 1), Begin(SLOT, number), End(SLOT, number)]
                c.events.append(Arrive(f"{SLOT} empty"))
    for c in consumers:
        c.events.append(Drain())
    arrivals = {f"{SLOT} full": 1, f"{SLOT} empty": several}
    for channel in trace.channels:
        for c, n in ((c, n) for c in consumers for n in range(channel.places)):
            place = c.place(channel, n)
            arrivals |= {f"{place} full": 1, f"{place} empty": 1 if channel.split else several}
    roles = {PRODUCER: tuple(producer), **{consumer(c.number): tuple(c.events) for c in consumers}}
    return Protocol(roles, arrivals)
