#!/usr/bin/env python3
"""A live dashboard over Server-Sent Events, on the standard library alone.

    python sse_dashboard.py              then open http://localhost:8000

One tick's journey is the order of this file. The simulation, an example of a source, comes last:

    Simulation.events_at(tick) -> events -> frame (bytes)             once a tick, in the generator
      -> Broadcaster -> each Subscription's queue -> its thread       once a client: one put,
      -> socket                                                       one write
      ~~> EventSource -> state -> one animation frame -> canvas       in the page, index.html

Nothing flows back but what a client asks for: a filter, and the last event ID that it was given.

Threads, and who ends them:

    main        fills the history, then waits for a signal. Leaving its `with` block is the one
                way down.
    generator   asks the sources for the events of each tick, and publishes them.
                DashboardServer.__exit__ ends it first.
    serve       accepts connections. Twice a second it looks at all of them, notices who has left,
                cuts who is over time, and names a source that hangs. __exit__ ends it next.
    one for each connection: reads one request and answers it. The thread of a stream sleeps on
                its queue and writes what comes. It ends when its subscription was ended (the client
                left or takes nothing, the server stops) and its queue is written, or when a write
                failed. Any other answer has a deadline: then the serve thread cuts the connection.
                What is left at the end of the server __exit__ cuts.
    log         writes the log to standard error, so that nobody else waits for it. There is none if
                the program has a log handler. It ends with the server, and has a moment to write.

Words:

    tick        a multiple of the interval, in Unix milliseconds: the moment that readings are of
    event ID    <tick>-<number within the tick>. IDs are ordered. The simulation's are the same in
                every server with the same seed and interval.
    frame       the bytes of one or more whole events: what one write sends
    place       of a client that is behind: the event ID after which it reads on
    live        a client that gets every frame into its queue as it is published
    behind      a client whose thread reads the history, from its place on, until it is live

Deliberate choices:

  * One mechanism for a first history, a resume, a burst and a slow reader: see Subscription. Nobody
    is waited for. On Linux nobody is cut who reads 4 KB a second; elsewhere a write has 10 s.
  * A client goes live under the lock that publishing takes, when nothing is left to read. That
    alone keeps gaps and doubles out.
  * The simulation is a function of seed and time. So a restart loses none of its events, and two
    servers need not know each other.
  * One request a connection. No body is ever taken for the next request, and the end of a stream
    is the end of its connection.

Standards: WHATWG HTML "Server-sent events", RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import argparse
import base64
import errno
import gzip
import hashlib
import html
import io
import json
import logging
import math
import os
import queue
import random
import re
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv6Address
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote

if sys.version_info < (3, 10):  # noqa: UP036 - 3.8 and 3.9 are told so in a line
    sys.exit(f"sse_dashboard.py needs Python 3.10 or newer; this is {sys.version.split()[0]}")

logger = logging.getLogger("sse_dashboard")

# --- Settings ------------------------------------------------------------------------------------

TITLE = "SSE dashboard"
INTERVAL_SECONDS = 1.0  # between ticks: what a person still sees as live
HISTORY_SECONDS = 300.0  # held in memory: the page's first window
MAX_CLIENTS = 1000  # open connections of any kind: each costs a thread
INTERVAL_RANGE = (0.05, 60.0)  # in seconds
HISTORY_RANGE = (0.0, 3600.0)  # in seconds
CLIENTS_RANGE = (1, 100_000)
MAX_HISTORY_TICKS = 20_000  # some 100 MB of history, computed within 3 s at the start
CHECK_SECONDS = 1.0  # at least, between two looks of the simulation at its thresholds
CALM_SECONDS = 30.0  # below a threshold, until that is called normal: so nothing flaps

RETRY_MS = (2000, 4000)  # the reconnection time: random, so that not all come back at once
HEARTBEAT_SECONDS = 15.0  # of silence: WHATWG HTML advises a comment, for proxies that give up
HEARTBEAT = b":\n"  # no empty line: some clients would hand on an event without data
SLOW_TICKS = 3  # in a row that a source holds up, until the log names it
STUCK_SECONDS = 10.0  # that a source keeps the generator waiting, until the log names it
FUTURE_SECONDS = 60.0  # an ID further ahead of the clock comes from no other server of ours
CATCH_UP_SECONDS = 60.0  # after a pause up to this no tick is left out, even if history is shorter

QUEUE_FRAMES = 100  # that a live client may be late: one that is further behind reads the history
HANDFUL_EVENTS = 64  # read from the history and written at a time: some 10 KB
SEND_BUFFER_BYTES = 16 * 1024  # the kernel's share of what a client is late: by default it is hours
SEND_TIMEOUT_SECONDS = 10.0  # of patience with a client that takes nothing
SLOWEST_BYTES = 4096  # a second: the slowest reader that is kept
BUFFERED_SECONDS = 30.0  # of patience more, at most, are earned by what its kernel has taken
CLIENTS_AT_ONCE = 128  # are woken before the publisher rests
REST_SECONDS = 0.0001  # without it 1,000 threads wait for the interpreter's lock: 4 times the CPU

REQUEST_SECONDS = 10.0  # for a request to arrive whole, however slowly its bytes drip
MAX_HEAD_BYTES = 65_536  # of a request line and its header fields together
MAX_FIELDS = 100  # in a request's head
RESPONSE_SECONDS = 60.0  # for a response that is no stream to be taken
LINGER_SECONDS = 2.0  # after a response, for the client to close first (RFC 9112, 9.6)
MAX_LINGERING = 512  # that wait for this at a time. With one more, the oldest is closed
RETRY_AFTER_SECONDS = 5  # told to a client for whom there is no room
BACKLOG = 1024  # connections that wait to be accepted: a burst, not an overload
SPARE_DESCRIPTORS = MAX_LINGERING + 128  # for who lingers, and for files and sockets of our own
ACCEPT_PAUSE_SECONDS = 0.1  # when there is no descriptor for a new connection
WATCH_SECONDS = 0.5  # between two looks at all connections: how soon a departure is noticed
DRAIN_BYTES = 8 << 20  # thrown away in one look, of what a client sent: more than a buffer holds

DRAIN_SECONDS = 0.6  # at the end, for the streams to write what is queued
HANG_UP_SECONDS = 0.3  # at the end, for a source that is busy, and for the threads that are cut
LOG_LINES = 1000  # that may wait to be written: more are lost
LOG_SECONDS = 0.2  # at the end, for the log to take the last line, and as long again to write it
MAX_MILLISECONDS = 253_402_300_800_000  # the year 10000: RFC 3339 has four digits


def check_range(name: str, value: float, allowed: tuple[float, float]) -> None:
    """Raises ValueError for a value that is outside what is allowed."""
    low, high = allowed
    if not low <= value <= high:
        raise ValueError(f"{name} is from {low:g} to {high:g}, not {value!r}")


def check_times(interval: float, history: float) -> None:
    """Raises ValueError for an interval or a history, both in seconds, that cannot be."""
    check_range("interval", interval, INTERVAL_RANGE)
    check_range("history", history, HISTORY_RANGE)
    longest = MAX_HISTORY_TICKS * round(interval, 3)
    if history > longest:
        raise ValueError(
            f"history is at most {longest:g} seconds ({MAX_HISTORY_TICKS} ticks) at this interval"
        )


# --- Event ---------------------------------------------------------------------------------------

LEVELS = ("info", "success", "warning", "error")
TROUBLE = ("warning", "error")  # the levels that a metric's thresholds can have, the milder first
SERVERS_OWN = ("status", "panels", "reset")  # the event types that no program can tell
BUILT_IN = ("metric", "alert", *SERVERS_OWN)  # the types that a browser knows
to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def timestamp(milliseconds: float) -> str:
    """Unix milliseconds as RFC 3339 writes them, in UTC."""
    seconds, rest = divmod(int(milliseconds), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"


def is_number(value: object) -> bool:
    """Whether a value is a finite number. True and False are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max


@dataclass(frozen=True)
class Event:
    """Something to tell: an event type, and the fields of the JSON object that says it.

    What cannot be sent raises here, where the mistake is: ValueError for a type of several lines
    or a number that is not finite, TypeError for a value that JSON does not have. Publishing adds
    the ID and the timestamp. `at` is a moment of the program's own for the timestamp, in Unix
    milliseconds; without it, it is the tick or the moment of publishing."""

    type: str
    fields: Mapping[str, Any]
    at: float | None = None
    json: str = field(init=False, repr=False, compare=False)  # as the fields were at birth

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or not re.fullmatch(r"[^\r\n\0]+", self.type):
            raise ValueError(
                f"an event's type is one line of text, not empty and without NUL, not {self.type!r}"
            )
        if not isinstance(self.fields, Mapping):
            raise TypeError(f"an event's fields are names with values, not {self.fields!r}")
        if {"type", "timestamp"} & self.fields.keys():
            raise ValueError("`type` and `timestamp` are added to an event's fields by publishing")
        if self.at is not None and not (is_number(self.at) and 0 <= self.at < MAX_MILLISECONDS):
            raise ValueError(f"an event's moment is in Unix milliseconds, not {self.at!r}")
        object.__setattr__(self, "json", to_json({"type": self.type, **self.fields}))
        self.json.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair

    @property
    def topic(self) -> str:
        """What a filter asks for: a metric's name, an alert's level."""
        return str(self.fields.get("level" if self.type == "alert" else "name", ""))

    def encode(self, moment: float, event_id: str = "") -> bytes:
        """The event's bytes, with its timestamp and ID, and the empty line that ends it.

        JSON escapes line breaks, so the data is one line. (U+2028 is no line break: WHATWG HTML,
        "Parsing an event stream".) The ID comes last: a client that takes an ID as it reads it
        cannot have the ID of an event that was cut short."""
        lines = [
            f"event: {self.type}",
            f'data: {self.json[:-1]}, "timestamp": "{timestamp(moment)}"}}',
        ]
        if event_id:
            lines.append(f"id: {event_id}")
        return ("\n".join(lines) + "\n\n").encode()


def check_name(name: str) -> None:
    """Raises ValueError for the name of a metric that no filter could ask for."""
    if not name or "," in name:
        raise ValueError(f"a metric's name is not empty and has no comma, not {name!r}")


def metric(name: str, value: float, unit: str = "", *, at: float | None = None) -> Event:
    """A reading. The page draws a card and a line for any name, with its unit ("%", "B/s", "°C").

    `at` is when it was read, in Unix milliseconds, if not now. Raises TypeError for an argument of
    another type, ValueError for a name that no filter could ask for and a value that is not
    finite."""
    if not isinstance(name, str) or not isinstance(unit, str):
        raise TypeError(f"a metric's name and unit are texts, not {name!r} and {unit!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a metric's value is a number, not {value!r}")
    if not is_number(value):
        raise ValueError(f"a metric's value is finite, not {value!r}")
    check_name(name)
    return Event("metric", {"name": name, "value": value, "unit": unit}, at)


def alert(level: str, message: str, metric: str = "", *, at: float | None = None) -> Event:
    """Something that happened, and the metric that caused it. `at` is as in metric().

    Raises ValueError for an unknown level, TypeError for a message or metric that is no text."""
    if level not in LEVELS:
        raise ValueError(f"an alert's level is one of {', '.join(LEVELS)}, not {level!r}")
    if not isinstance(message, str) or not isinstance(metric, str):
        raise TypeError(f"an alert's message and metric are texts, not {message!r} and {metric!r}")
    fields = {"level": level, "message": message}
    if metric:
        fields["metric"] = metric
    return Event("alert", fields, at)


@dataclass(frozen=True)
class Panel:
    """How metrics are shown: the title of their card, and what each one's line is called there.

    A gauge (`arc` or `bar`) shows one metric within its range, from `min` to `max`. The
    `thresholds` say from which value on a metric is in trouble, and how bad that is:
    `{"warning": 85, "error": 95}`. `decimals` are the digits after the point, or more after a
    prefix (1,499 W are 1.50 kW); without it the page finds those that fit. Metrics in another unit
    than the first have a card beside it. Raises TypeError or ValueError for what cannot be shown.
    """

    title: str
    metrics: Mapping[str, str]
    gauge: str = ""
    min: float | None = None
    max: float | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    decimals: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.title, str) or not self.title.strip():
            raise ValueError(f"a panel's title is a text that is not empty, not {self.title!r}")
        if not isinstance(self.metrics, Mapping) or not self.metrics:
            raise TypeError(f"a panel's metrics are names with labels, not {self.metrics!r}")
        if not all(isinstance(text, str) for pair in self.metrics.items() for text in pair):
            raise TypeError(f"a metric's name and label are texts, not {self.metrics!r}")
        for name in self.metrics:
            check_name(name)
        if not isinstance(self.thresholds, Mapping) or not self.thresholds.keys() <= set(TROUBLE):
            raise ValueError(f"thresholds are for {' and '.join(TROUBLE)}: {self.thresholds!r}")
        for number in (self.min, self.max, *self.thresholds.values()):
            if number is not None and not is_number(number):
                raise TypeError(f"a panel's range and thresholds are finite numbers: {number!r}")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError(f"a panel's min is below its max, not {self.min!r} and {self.max!r}")
        if self.gauge not in ("", "arc", "bar"):
            raise ValueError(f"a panel's gauge is `arc` or `bar`, not {self.gauge!r}")
        if self.gauge and (self.min is None or self.max is None or len(self.metrics) > 1):
            raise ValueError("a gauge shows one metric, and needs a min and a max")
        if list(self.limits) != sorted(set(self.limits)):
            raise ValueError(f"a worse level has a higher threshold: {self.thresholds!r}")
        if self.decimals is not None and type(self.decimals) is not int:
            raise TypeError(f"a panel's decimals are a whole number, not {self.decimals!r}")
        if self.decimals not in (None, *range(10)):
            raise ValueError(f"a panel's decimals are from 0 to 9, not {self.decimals!r}")
        to_json(self.as_fields()).encode()  # raises for what no stream could say, as an Event does

    @property
    def limits(self) -> tuple[float, ...]:
        """The thresholds, the milder first."""
        return tuple(self.thresholds[level] for level in TROUBLE if level in self.thresholds)

    def as_fields(self) -> dict[str, Any]:
        """What the `panels` event says of it: the fields that were given."""
        return {name: value for name, value in vars(self).items() if value not in ("", None, {})}


def check_event(event: object) -> None:
    """Raises TypeError or ValueError for what a program cannot tell."""
    if not isinstance(event, Event):
        raise TypeError(f"events are what metric() and alert() make, not {event!r}")
    if event.type in SERVERS_OWN:
        raise ValueError(f"{event.type!r} is an event of the server's own")


class Source(Protocol):
    """Where events come from: the simulation, or a program's own.

    A source may have two attributes more. `panels`, a sequence of Panel, says how its metrics are
    shown. `replayable = True` promises that its events depend on the tick alone: the history is
    then filled from it at the start, and a resume over a restart misses nothing."""

    def events_at(self, tick: int) -> Iterable[Event]:
        """The events of a tick, which is in Unix milliseconds.

        Called in the generator thread, and for the history at the start in the thread that enters
        the server's `with` block."""


# --- Subscription: one client's queue, its filter, its place in the history -----------------------

EventID = tuple[int, int]  # the tick and the number within it: compared by order


class Entry(NamedTuple):
    """An event that was published."""

    id: EventID
    type: str
    topic: str
    moment: float  # of its timestamp, in Unix milliseconds
    published: float  # its tick, and the milliseconds since by a steady clock: what to forget
    wire: bytes


class Filter(NamedTuple):
    """What a client wants to see. Clients with equal filters share every frame."""

    types: frozenset[str] | None = None  # of events. None: all, and with them `status` and `panels`
    names: frozenset[str] = frozenset()  # of metrics. Empty: all
    levels: frozenset[str] = frozenset()  # of alerts. Empty: all
    # For a client that comes from a server whose clock is ahead of ours: everything up to this ID
    # it had from there, so here it is skipped, in the history and when it is live.
    after: EventID = (0, 0)

    def passes(self, entry: Entry) -> bool:
        if entry.id <= self.after or not (self.types is None or entry.type in self.types):
            return False
        if entry.type == "metric" and self.names:
            return entry.topic in self.names
        if entry.type == "alert" and self.levels:
            return entry.topic in self.levels
        return True

    def frame(self, entries: Iterable[Entry]) -> bytes:
        """The bytes of those entries that pass."""
        return b"".join([entry.wire for entry in entries if self.passes(entry)])


EVERYTHING = Filter()
REASONS = {  # how a stream, or a connection that never got one, came to its end
    "closed": "the client left",
    "stalled": "the client took nothing for too long (see OpenStream), or vanished",
    "refused": "there was no room for it",
    "failed": "the program's stream_opened() raised, or the server itself",
    "shutdown": "the server ended",
}


class Subscription:
    """One client: its filter, its place in the history, and its queue.

    A client is live or behind. A live one gets every frame into its queue. One that is behind gets
    none: its own thread reads the history from the client's place on, until nothing is left to
    read, and is live from then on. Everybody starts behind. A live client falls behind when its
    queue is full. So a first history, a resume, a burst and a slow reader are all one thing.

    The broadcaster, below, writes `live`, `place` and `reason` under its lock: catch_up() reads the
    history for it, and _fall_behind() ends that it is live. The client's thread calls frames(), and
    counts `events`."""

    def __init__(self, broadcaster: Broadcaster, wanted: Filter, place: EventID) -> None:
        self.wanted = wanted
        self.place = place  # while it is behind: the ID after which its thread reads on
        self.can_miss = False  # it resumed, or has read: the loss of its place is news to it
        self.live = False
        self.reason = ""  # why it has ended, once it has: a key of REASONS
        self.events = 0  # written so far, those of the server's own included
        self._broadcaster = broadcaster
        self._queue: queue.Queue[bytes] = queue.Queue(QUEUE_FRAMES)

    def offer(self, frame: bytes) -> bool:
        """Queues a frame, if there is room. Never blocks. Called under the broadcaster's lock."""
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            return False
        return True

    def wake(self) -> None:
        """Lets frames() look at `live` and `reason` again, if it waits for a frame.

        It waits for none while the queue is full, so then nobody need be woken."""
        self.offer(b"")

    def frames(self) -> Iterator[bytes]:
        """What to write, in order, until the stream ends. Blocks the client's thread."""
        while True:
            # `live` is looked at first. While it is false nobody adds an event (wake() may add an
            # empty frame), and this thread alone makes it true again, in catch_up(). So if the
            # queue is empty after that, everything that was ever in it has been written, and no
            # lock is needed to know it.
            if not self.live and self._queue.empty():
                if self.reason:
                    return
                frame = self._broadcaster.catch_up(self)
            else:
                try:
                    frame = self._queue.get(timeout=HEARTBEAT_SECONDS)
                except queue.Empty:
                    frame = HEARTBEAT
            if frame:
                yield frame


# --- Broadcaster: event IDs, history, fan-out, resume --------------------------------------------


class Broadcaster:
    """Gives every event its ID, holds the history, and hands every event to all who want it.

    `interval` and `history` are in seconds. Any thread may call any method. None waits for a
    client, only for the lock. Publishing to many holds the lock for some milliseconds."""

    def __init__(
        self,
        interval: float = INTERVAL_SECONDS,
        history: float = HISTORY_SECONDS,
        title: str = TITLE,
        panels: Sequence[Panel] = (),
    ) -> None:
        check_times(interval, history)
        if not isinstance(title, str):
            raise TypeError(f"a title is a text, not {title!r}")
        title.encode()  # raises UnicodeEncodeError, a ValueError, for half a surrogate pair
        self.interval_ms = round(interval * 1000)
        self.history_ms = round(history * 1000)
        self.instance = os.urandom(4).hex()  # another at each start: how a client sees a restart
        self._shown = {
            "title": title,
            "history_seconds": history,
            "panels": [panel.as_fields() for panel in panels],
        }
        self._panel_metrics = [name for panel in panels for name in panel.metrics]
        self._started_at = time.monotonic()
        # Guards everything below, and each subscription's `live`, `place` and `reason`. Publishing
        # fills queues while it holds this, which is safe because offer() never blocks.
        self._lock = threading.RLock()
        self._history: list[Entry] = []  # ordered by ID
        self._newest_of: dict[tuple[str, str], Entry] = {}  # for each type and topic that is held
        self._last: EventID = (0, 0)  # the newest ID; (tick, 0) after a tick without events
        self._gone: EventID = (0, 0)  # nothing up to this ID is held
        self._subscriptions: set[Subscription] = set()
        self._events_published = 0
        self.names_are_open = False  # a program has published a metric that no panel names
        self._begun = self._closed = False
        self._ticked_at = 0.0  # when the newest tick was published, by time.monotonic()

    def publish_tick(
        self, tick: int, events: Iterable[Event], as_history: bool = False, anew: bool = False
    ) -> None:
        """Publishes the events of a tick. If `as_history`, only remembers them.

        `anew` is for the first tick after a gap: the history begins with it. An event whose own
        moment lies before the newest one of its metric is left out, and logged."""
        with self._lock:
            if anew or not self._begun:
                self._begin(tick)
            self._ticked_at = time.monotonic()
            before = self._last
            entries = self._remember((tick, 1), events, tick, tick, strict=False)
            self._last = entries[-1].id if entries else (tick, 0)
            self._forget(tick - max(self.history_ms, 1))  # the newest tick is always held
            if not as_history:
                self._fan_out(entries, before, self._status(tick))

    def publish(self, *events: Event) -> None:
        """Publishes events at once, between two ticks, as one batch. Each carries this moment.

        Raises TypeError for what is no event, ValueError for an event whose own moment lies before
        the newest one of its metric, RuntimeError when the server has not begun or has ended."""
        for event in events:
            check_event(event)
        with self._lock:
            if self._closed or not self._begun:
                raise RuntimeError(f"the server has {'ended' if self._closed else 'not begun'}")
            self.names_are_open = self.names_are_open or any(
                event.type == "metric" and event.topic not in self._panel_metrics
                for event in events
            )
            before = self._last
            tick, number = before
            now = max(time.time() * 1000, tick)
            # Numbers count the microseconds since the tick, so that a server that is started again
            # before the next tick does not give the same number to another event.
            number = max(number + 1, int(1000 * min(now - tick, self.interval_ms)))
            steady = tick + (time.monotonic() - self._ticked_at) * 1000
            if entries := self._remember((tick, number), events, now, steady, strict=True):
                self._last = entries[-1].id
                # Each tick forgets, too. But there is none while a source keeps the generator.
                self._forget(steady - self.history_ms - 2 * self.interval_ms)
                self._fan_out(entries, before)

    @contextmanager
    def subscribe(
        self,
        wanted: Filter = EVERYTHING,
        last_event_id: str = "",
        history: float | None = None,
    ) -> Iterator[Subscription]:
        """A subscription for the length of a `with` block.

        It begins with the reconnection time, and on a stream of all with `status` and `panels`.
        Then come exactly the events after the last event ID. Without an ID, those of the last
        `history` seconds come, or without both, those of the newest tick. An ID that is older than
        what is held, or that no server can have sent, is answered by a `reset` event and all that
        is held."""
        with self._lock:
            reset, place = self._position(last_event_id, history)
            if place > self._last:  # it was served by a clock ahead of ours
                wanted = wanted._replace(after=place)
            subscription = Subscription(self, wanted, place)
            subscription.can_miss = bool(last_event_id) and not reset
            self._subscriptions.add(subscription)
            subscription.offer(self._opening(wanted, reset))
            if self._closed:
                self.end(subscription, "shutdown")
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.remove(subscription)

    def catch_up(self, subscription: Subscription) -> bytes:
        """The next handful of what the client missed. When nothing is left, it is live.

        Called by the client's thread. The frame may be empty: its filter may pass nothing."""
        reset = b""
        with self._lock:
            if subscription.place < self._gone:
                subscription.place = self._gone
                if subscription.can_miss:
                    reset = self._reset("expired")
                if subscription.wanted.types is None:
                    reset += self._panels(self._newest_of)  # a new type may have come meanwhile
            subscription.can_miss = True
            start = bisect_right(self._history, subscription.place, key=lambda entry: entry.id)
            handful = self._history[start : start + HANDFUL_EVENTS]
            if handful:
                subscription.place = handful[-1].id
            elif not subscription.reason:
                subscription.live = True  # in the same critical section: nothing lies between
        return reset + subscription.wanted.frame(handful)

    def end(self, subscription: Subscription, reason: str) -> None:
        """Ends a stream, after the frames that are queued. The first reason stays.

        A client that is behind gets no more of the history: it resumes from where it is."""
        with self._lock:
            if not subscription.reason:
                subscription.reason = reason
                # It gets no more frames. Its thread writes those it has, and finds the reason.
                self._fall_behind(subscription, self._last)

    def close(self) -> None:
        """Ends every stream, and each that is yet to come."""
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                self.end(subscription, "shutdown")

    def metric_names(self) -> list[str]:
        """The metrics that are held or have a panel: what a filter may ask for."""
        with self._lock:
            held = [topic for type, topic in self._newest_of if type == "metric"]
        return list(dict.fromkeys(self._panel_metrics + held))

    def newest_moment(self) -> float:
        """When the newest event that is held was published, in Unix milliseconds."""
        with self._lock:
            return self._history[-1].published if self._history else 0.0

    def snapshot(self) -> dict[str, Any]:
        """Uptime in seconds, open event streams, events published, and the newest ID."""
        with self._lock:
            newest = self._history[-1].id if self._history else ()
            return {
                "uptime_seconds": round(time.monotonic() - self._started_at, 1),
                "connections": len(self._subscriptions),
                "events_published": self._events_published,
                "last_event_id": "-".join(map(str, newest)),
            }

    # What follows is called with the lock held.

    def _begin(self, tick: int) -> None:
        """Begins with an empty history, from this tick on.

        Every client is behind now, from a place that is gone: catch_up() tells it of that."""
        for subscription in self._subscriptions:
            self._fall_behind(subscription, self._last)
            subscription.can_miss = True
        self._history.clear()
        self._newest_of.clear()
        self._last = self._gone = (tick, 0)
        self._begun = True

    def _remember(
        self,
        first: EventID,
        events: Iterable[Event],
        moment: float,
        published: float,
        strict: bool,
    ) -> list[Entry]:
        """Appends events to the history, with IDs from the first on.

        If `strict`, it appends all or none: ValueError for one whose own moment lies before the
        newest of its metric. Else that one is logged and left out."""
        tick, number = first
        entries: list[Entry] = []
        newest_of = dict(self._newest_of)
        if self._history:
            published = max(published, self._history[-1].published)
        for event in events:
            key = (event.type, event.topic)
            at = moment if event.at is None else event.at
            if event.type == "metric" and key in newest_of and at < newest_of[key].moment:
                problem = f"{event.topic} has a value of a later moment than {event.at}"
                if event.at is None:
                    at = newest_of[key].moment  # the clock was set back, or `at` lay ahead of it
                elif strict:
                    raise ValueError(problem)
                else:
                    logger.warning("an event of tick %d is left out: %s", tick, problem)
                    continue
            wire = event.encode(at, f"{tick}-{number}")
            if event.type not in BUILT_IN and all(event.type != type for type, _ in newest_of):
                wire = self._panels([*newest_of, key]) + wire  # a browser must listen for each type
            entries.append(Entry((tick, number), event.type, event.topic, at, published, wire))
            newest_of[key] = entries[-1]
            number += 1
        self._newest_of = newest_of
        self._history += entries
        return entries

    def _forget(self, until: float) -> None:
        """Lets go of what was published up to a moment, which is in Unix milliseconds."""
        expired = bisect_right(self._history, until, key=lambda entry: entry.published)
        if not expired:
            return
        self._gone = self._history[expired - 1].id
        for entry in self._history[:expired]:
            if self._newest_of.get((entry.type, entry.topic)) is entry:
                del self._newest_of[entry.type, entry.topic]
        del self._history[:expired]

    def _fan_out(self, entries: Sequence[Entry], before: EventID, status: bytes = b"") -> None:
        """Offers each live client the frame of its filter, which is made once.

        A client whose queue is full goes on from `before`, the ID before these entries."""
        self._events_published += len(entries)
        frames: dict[Filter, bytes] = {}
        offered = 0
        for subscription in self._subscriptions:
            if not subscription.live:
                continue
            wanted = subscription.wanted
            if wanted not in frames:
                frames[wanted] = wanted.frame(entries) + (status if wanted.types is None else b"")
            if frames[wanted]:
                if not subscription.offer(frames[wanted]):
                    self._fall_behind(subscription, before)
                offered += 1
                if offered % CLIENTS_AT_ONCE == 0:
                    time.sleep(REST_SECONDS)

    def _fall_behind(self, subscription: Subscription, place: EventID) -> None:
        """No more frames for this client. Its thread reads what is queued, and then looks again.

        One that is behind already keeps its own place: its thread reads on from there."""
        if subscription.live:
            subscription.live = False
            subscription.place = place
            subscription.wake()

    def _position(self, last_event_id: str, history: float | None) -> tuple[str, EventID]:
        """Why a client must start over ("" if it need not), and its place."""
        if not last_event_id:
            since = self._last[0] - (1 if history is None else round(history * 1000))
            return "", max(self._gone, min(self._last, (since, sys.maxsize)))
        found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", last_event_id)
        if not found:
            return "unknown", self._gone
        place = (int(found[1]), int(found[2]))
        if place[0] > max(time.time() * 1000, self._last[0]) + FUTURE_SECONDS * 1000:
            return "unknown", self._gone
        return ("expired", self._gone) if place < self._gone else ("", place)

    def _opening(self, wanted: Filter, reset: str) -> bytes:
        """What comes before all events. The reconnection time has no empty line: it is no event."""
        opening = f"retry: {random.randint(*RETRY_MS)}\n".encode()
        if reset:
            opening += self._reset(reset)
        if wanted.types is None:
            now = time.time() * 1000
            opening += self._status(now) + self._panels(self._newest_of)
        return opening

    def _reset(self, reason: str) -> bytes:
        return Event("reset", {"reason": reason}).encode(time.time() * 1000)

    def _panels(self, held: Iterable[tuple[str, str]]) -> bytes:
        own = [type for type in dict.fromkeys(type for type, _ in held) if type not in BUILT_IN]
        return Event("panels", {**self._shown, "types": own}).encode(time.time() * 1000)

    def _status(self, moment: float) -> bytes:
        now = self.snapshot()
        fields = {name: now[name] for name in ("uptime_seconds", "connections")}
        fields |= {"interval_seconds": self.interval_ms / 1000, "instance": self.instance}
        return Event("status", fields).encode(moment)


# --- Generator thread: time ----------------------------------------------------------------------


def is_replayable(source: Source) -> bool:
    """Whether a source has promised that its events depend on the tick alone."""
    return bool(getattr(source, "replayable", False))


class Generator:
    """Publishes the events of all sources at every tick, in its own thread.

    A source that raises is logged, and its events of that tick are left out. A source that takes
    longer than the interval is logged, too. Ticks that are late, after a pause of the process, are
    made up for from the replayable sources. After a pause that is longer than the history, and than
    CATCH_UP_SECONDS, only those that the history spans are, and every client is told so."""

    def __init__(self, broadcaster: Broadcaster, sources: Sequence[Source]) -> None:
        # The replayable come first: so their events have the same numbers as in a history that is
        # filled from them alone.
        self.sources = sorted(sources, key=lambda source: not is_replayable(source))
        self.replayable = [source for source in self.sources if is_replayable(source)]
        self._broadcaster = broadcaster
        self._interval_ms = broadcaster.interval_ms
        # The ticks that the history holds: of any that is past, only the replayable can tell.
        self._spanned = 1
        if self.replayable:
            self._spanned = max(1, math.ceil(broadcaster.history_ms / self._interval_ms))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._epoch = 0.0  # when, in Unix seconds, the steady clock was at zero
        self._next = 0  # the tick to be published next
        self._late: Counter[int] = Counter()  # ticks in a row that a source held up, by its id()
        self._asked: tuple[Source, float] | None = None  # who has yet to answer, and since when

    def start(self) -> None:
        """Fills the history from the replayable sources, and starts the thread.

        Blocks for the time that the sources take. Raises RuntimeError when there is no thread."""
        if self.replayable:
            # One tick more than is held: its ID is the last from which a client may still resume.
            self._next = self._newest_tick() - self._spanned * self._interval_ms
            self._publish_due(as_history=True)
        else:
            # Nobody can tell of what was before this very moment.
            self._broadcaster.publish_tick(self._steady_ms(), [], as_history=True)
            self._next = self._newest_tick() + self._interval_ms
        self._thread.start()

    def stop(self) -> None:
        """No more ticks. Waits a little for a source that is still busy."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(HANG_UP_SECONDS)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds_to_next()):
            try:
                self._publish_due()
            except Exception:
                logger.exception("a tick could not be published")

    def _seconds_to_next(self) -> float:
        """A second at most, for the wall clock may be set forward meanwhile."""
        return max(0, min(1000, self._next - self._steady_ms())) / 1000

    def _steady_ms(self) -> int:
        """The time of day, but never going back: when the clock is set back, time runs on."""
        self._epoch = max(self._epoch, time.time() - time.monotonic())
        return int((self._epoch + time.monotonic()) * 1000)

    def _newest_tick(self) -> int:
        return self._steady_ms() // self._interval_ms * self._interval_ms

    def _publish_due(self, as_history: bool = False) -> None:
        """Publishes all ticks up to now, each as one frame."""
        newest, interval = self._newest_tick(), self._interval_ms
        longest_pause = max(self._broadcaster.history_ms + interval, CATCH_UP_SECONDS * 1000)
        anew = newest - self._next > longest_pause
        if anew:
            # Here not one tick more than is held: it would be forgotten while clients read it, and
            # they would be told a second time.
            self._next = newest - (self._spanned - 1) * interval
        if anew and not self.replayable:
            # A source may just have kept this thread waiting. Who published meanwhile lost nothing.
            anew = self._broadcaster.newest_moment() < newest - self._broadcaster.history_ms
        while self._next <= newest and not self._stop.is_set():
            tick, self._next = self._next, self._next + interval
            # Only the replayable can tell of a tick that has passed.
            all_can_tell = tick == newest and not as_history
            events = self._events(tick, self.sources if all_can_tell else self.replayable)
            self._broadcaster.publish_tick(tick, events, as_history, anew)
            anew = False

    def _events(self, tick: int, sources: Iterable[Source]) -> list[Event]:
        events: list[Event] = []
        for source in sources:
            started_at = time.monotonic()
            self._asked = (source, started_at)
            try:
                found = list(source.events_at(tick))
                for event in found:
                    check_event(event)
                events += found
            except KeyboardInterrupt:  # a signal, while the main thread fills the history
                raise
            except BaseException:  # a source does not decide about the server's life
                logger.exception("%r raised at tick %d: its events are left out", source, tick)
            finally:
                self._asked = None
            self._name_slow(source, time.monotonic() - started_at)
        return events

    def _name_slow(self, source: Source, seconds: float) -> None:
        """Logs a source that holds up SLOW_TICKS ticks in a row, once until it is fast again.

        One that does so for a single tick may just have waited for the processor."""
        late = seconds > self._interval_ms / 1000
        self._late[id(source)] = self._late[id(source)] + 1 if late else 0
        if self._late[id(source)] == SLOW_TICKS:
            logger.warning("%r takes %.1f s a tick: ticks are late", source, seconds)

    def name_stuck(self) -> None:
        """Logs a source that may never come back, once. Called now and then by another thread."""
        asked = self._asked
        if not asked:
            return
        source, since = asked
        seconds = time.monotonic() - since
        if seconds > max(STUCK_SECONDS, self._interval_ms / 1000):
            self._asked = None
            logger.warning("%r has been busy for %.0f s: no tick until it is done", source, seconds)


# --- Log: nobody waits for standard error --------------------------------------------------------


class PatientLog(logging.Handler):
    """The log on standard error, written by a thread of its own: nobody else ever waits for it.

    Standard error may be a pipe that nobody reads, or a terminal that Ctrl-S has stopped. A line
    that finds the queue full is lost. The next one that is not says how many were."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(LOG_LINES)
        self._lost = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()
        super().__init__()  # last: it is closed at the end only if it has begun
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Queues a line. The base class holds the lock of this handler meanwhile."""
        try:
            line = f"{self.format(record)}\n"
        except Exception:  # a source whose repr() raises, for one
            line = f"{record.levelname} {record.msg}\n"
        if self._lost:
            line = f"({self._lost} lines of the log were lost here)\n{line}"
        try:
            self._lines.put_nowait(line)
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Waits a moment for what is queued to be written."""
        with suppress(queue.Full):  # nobody reads standard error
            self._lines.put(None, timeout=LOG_SECONDS)
            self._writer.join(LOG_SECONDS)
        super().close()

    def _write(self) -> None:
        # Past the buffer of sys.stderr: at its end, Python would wait for whoever is writing to it.
        stream = open(sys.stderr.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115
        while (line := self._lines.get()) is not None:
            with suppress(OSError):
                stream.write(line.encode(sys.stderr.encoding, "backslashreplace"))


# --- Handler: one request ------------------------------------------------------------------------

STREAMS: dict[str, frozenset[str] | None] = {  # the event types that each carries. None: all
    "/api/events/metrics": frozenset({"metric"}),
    "/api/events/alerts": frozenset({"alert"}),
    "/api/events/all": None,
}
ROUTES = ("/", "/api/status", *STREAMS)
METHODS = ("GET", "HEAD", "OPTIONS")
PUBLIC = {"Access-Control-Allow-Origin": "*"}  # a page of any origin may read the data
PREFLIGHT = {
    "Access-Control-Allow-Methods": ", ".join(METHODS),
    "Access-Control-Allow-Headers": "Last-Event-ID, Cache-Control",
}
JSON = {"Content-Type": "application/json"} | PUBLIC
EVENT_STREAM = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

COMMENT = re.compile(  # in lines of its own, or two spaces after what else stands in its line
    rb"^ *(/\*.*?\*/|//[^\n]*)\n|  +(//[^\n]*|/\*[^\n]*\*/)$", re.DOTALL | re.MULTILINE
)

# The grammar of a request's head: RFC 9110, 5.5 and 5.6.2; RFC 9112, 2.3 and 3; RFC 3986, 3.2.2.
# A target may hold a few characters more than a URI, because browsers send them, but no fragment.
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
TARGET = rb"[!\"$-~]+"
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") (" + TARGET + rb") (HTTP/([0-9])\.[0-9])")
# White space around a value is taken off later: a pattern for it would try each way to divide it.
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):([ -~\t\x80-\xff]*)")
NAME = r"(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})*"
HOST = rf"(?:\[([0-9A-Fa-f:.]+)\]|{NAME})(?::[0-9]*)?"
ORIGIN = re.compile(rf"https?://(?=[^:/?]){HOST}(?=[/?]|\Z)/?", re.IGNORECASE)  # before a path
CODINGS = {"chunked", "gzip", "x-gzip", "deflate", "compress", "x-compress"}  # RFC 9112, 7


class Problem(Exception):
    """Why a request is answered by an error: its status, one sentence, and perhaps headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers or {}


def head_lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Reads the lines of a request's head, one by one and without their ends. Blocks for each.

    An empty line ends the head, and whoever reads stops there. Raises Problem when no whole line
    comes."""
    room = MAX_HEAD_BYTES
    too_long = Problem(414, "The target of the request is too long.")
    while True:
        line = file.readline(room + 1)
        room -= len(line)
        if room < 0:
            raise too_long
        if not line.endswith(b"\n"):
            raise Problem(400, "The request ends before its head does.")
        line = line[:-1].removesuffix(b"\r")
        yield line
        if line:  # an empty one may come before the target
            too_long = Problem(431, "The header fields are too long.")


def read_fields(lines: Iterator[bytes]) -> Message:
    """Reads header fields until the empty line after them. Raises Problem for one that is none."""
    headers = Message()
    for line in lines:
        if not line:
            break
        found = FIELD_LINE.fullmatch(line)
        if not found:
            raise Problem(400, "A header field is one line: a name, a colon, a value.")
        if len(headers) == MAX_FIELDS:
            raise Problem(431, "There are too many header fields.")
        headers[found[1].decode()] = found[2].decode("latin-1").strip(" \t")
    return headers


def check_fields(version: str, headers: Message) -> None:
    """Raises Problem for header fields that leave it open where a request goes, or ends."""
    hosts = headers.get_all("Host", [])
    if len(hosts) > 1 or (not hosts and version != "HTTP/1.0"):
        raise Problem(400, "A request has exactly one Host header field.")
    if hosts and not is_host(hosts[0]):
        raise Problem(400, "The Host header field is a name or an address, and perhaps a port.")
    lengths = set(list_of(headers, "Content-Length"))
    if len(lengths) > 1 or not all(re.fullmatch("[0-9]+", length) for length in lengths):
        raise Problem(400, "The Content-Length is one number.")
    if "Transfer-Encoding" not in headers:
        return
    if lengths or version == "HTTP/1.0":
        raise Problem(400, "A Transfer-Encoding is for HTTP/1.1, without a Content-Length.")
    codings = [coding.lower() for coding in list_of(headers, "Transfer-Encoding") if coding]
    if not CODINGS.issuperset(codings):
        raise Problem(501, "This Transfer-Encoding is not known here.")
    if codings[-1:] != ["chunked"] or codings.count("chunked") > 1:
        raise Problem(400, "The last Transfer-Encoding, and only the last, is chunked.")


def is_host(value: str) -> bool:
    """Whether a value is that of a Host header field (RFC 9110, 7.2)."""
    found = re.fullmatch(HOST, value)
    if found and found[1]:
        with suppress(ValueError):
            return bool(IPv6Address(found[1]))
        return False
    return bool(found)


def list_of(headers: Message, name: str) -> list[str]:
    """The elements of a field that is a list. A field that is there has at least one, maybe ""."""
    return [part.strip(" \t") for value in headers.get_all(name, []) for part in value.split(",")]


def accepts_gzip(headers: Message) -> bool:
    """Whether a client takes gzip, by name or by `*`, with a weight over 0 (RFC 9110, 12.5.3)."""
    weights: dict[str, float] = {}
    for element in list_of(headers, "Accept-Encoding"):
        coding, _, weight = element.lower().partition(";")
        found = re.fullmatch(r"[ \t]*q=(0(\.[0-9]{0,3})?|1(\.0{0,3})?)", weight)
        weights[coding.strip(" \t")] = float(found[1]) if found else 1.0
    return weights.get("gzip", weights.get("*", 0)) > 0


def hang_up(connection: socket.socket) -> None:
    """Cuts a connection. Whichever thread reads or writes it comes back at once, and closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Page(NamedTuple):
    """What a browser is sent, in one of two encodings."""

    body: bytes
    headers: dict[str, str]


def load_page(path: Path, title: str = TITLE) -> tuple[Page, Page]:
    """The page under its title and without its comments, as it is and compressed. Raises OSError.

    Comments are for whoever opens the file: they are a fifth of the bytes. The page's policy
    allows each script and style in it by its hash, and nothing else."""
    # A browser hashes what it has parsed: CR and CRLF are LF then. A NUL would be another
    # character, but no text file has one.
    text = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    text = COMMENT.sub(b"", text)
    text = text.replace(f">{TITLE}<".encode(), f">{html.escape(title)}<".encode())
    policy = PAGE_POLICY
    for tag in ("script", "style"):
        policy += f"; {tag}-src"
        for inside in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>".encode(), text, re.DOTALL):
            policy += f" 'sha256-{base64.b64encode(hashlib.sha256(inside).digest()).decode()}'"
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept-Encoding",
    }

    def page(body: bytes, **encoding: str) -> Page:
        # Each has the tag of its own bytes, for a strong one says just those (RFC 9110, 8.8.3).
        tag = hashlib.sha256(body).hexdigest()[:32]
        return Page(body, headers | encoding | {"ETag": f'"{tag}"'})

    return page(text), page(gzip.compress(text, mtime=0), **{"Content-Encoding": "gzip"})


class Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection, in that connection's thread.

    It keeps nothing but what the base class keeps of the request."""

    server: DashboardServer
    rfile: io.BufferedReader
    rbufsize = 256  # a head comes in some pieces then: 8 KiB less for each client
    # Where the kernel does not say what a client takes, a write has to end in time. On Linux a
    # timeout would only add a poll() to every write.
    timeout = None if sys.platform == "linux" else SEND_TIMEOUT_SECONDS
    protocol_version = "HTTP/1.1"
    requestline = command = ""  # for an answer before the request was read
    request_version = "HTTP/1.1"

    def handle(self) -> None:
        """Reads the request and answers it. Every Problem is answered here."""
        try:
            if self.rfile.peek(1):  # else the client has left without a word
                self.read_request()
                self.server.deadlines[self.connection] = time.monotonic() + RESPONSE_SECONDS
                self.answer()
        except Problem as problem:
            body = f"{to_json({'error': problem.sentence})}\n".encode()
            self.respond(problem.status, {**JSON, **problem.headers}, body)

    def read_request(self) -> None:
        """Reads the head of the request, and checks it line by line. Raises Problem.

        The body is not read: nothing here takes one."""
        if not re.match(TOKEN + rb"|[\r\n]", self.rfile.peek(1)):
            # A TLS handshake, for example. It need not have a line that could be waited for.
            raise Problem(400, "This is no HTTP request.")
        lines = head_lines(self.rfile)
        line = next(lines) or next(lines)  # one empty line before it is skipped (RFC 9112, 2.2)
        self.requestline = line.decode("latin-1")
        found = REQUEST_LINE.fullmatch(line)
        if not found:
            raise Problem(400, "A request line is a method, a target and a version.")
        self.command, self.path, version, major = (part.decode() for part in found.groups())
        if major != "1":
            raise Problem(505, "The versions here are HTTP/1.0 and HTTP/1.1.")
        self.request_version = version
        self.headers = read_fields(lines)
        check_fields(version, self.headers)

    def answer(self) -> None:
        """The one way of every request, whatever its method. Raises Problem."""
        path, query = self.target()
        if path not in ROUTES:
            raise Problem(404, f"There is nothing here; there is {', '.join(ROUTES)}.")
        if self.command not in METHODS:
            allowed = ", ".join(METHODS)
            raise Problem(405, f"The methods here are {allowed}.", {"Allow": allowed})
        if self.command == "OPTIONS":
            headers = {"Allow": ", ".join(METHODS), **PREFLIGHT}
            self.respond(204, headers if path == "/" else headers | PUBLIC)
        elif path == "/":
            self.send_page()
        elif path == "/api/status":
            body = f"{to_json(self.server.status())}\n".encode()
            self.respond(200, JSON | {"Cache-Control": "no-store"}, body)
        else:
            self.send_stream(path, query)

    def target(self) -> tuple[str, dict[str, list[str]]]:
        """The path and the query of a target in origin or absolute form (RFC 9112, 3.2).

        Raises Problem."""
        target = "/" if self.path == "*" and self.command == "OPTIONS" else self.path
        if origin := ORIGIN.match(target):
            target = "/" + target[origin.end() :]
        if not target.startswith("/"):
            raise Problem(400, "The target of a request is a path of this server.")
        path, _, query = target.partition("?")
        path = "/" + unquote(path).lstrip("/")  # a proxy with a prefix may have put one too many
        return path, parse_qs(query, keep_blank_values=True)

    def send_page(self) -> None:
        body, headers = self.server.page[accepts_gzip(self.headers)]
        known = list_of(self.headers, "If-None-Match")
        if known == ["*"] or headers["ETag"] in (tag.removeprefix("W/") for tag in known):
            # It describes no content, for it has none (RFC 9110, 15.4.5).
            about_content = ("Content-Type", "Content-Encoding")
            self.respond(
                304, {name: headers[name] for name in headers if name not in about_content}
            )
        else:
            self.respond(200, headers, body)

    def send_stream(self, path: str, query: Mapping[str, list[str]]) -> None:
        """Streams events until the client leaves or the server ends it.

        Raises Problem for a wrong parameter, before anything is sent."""
        last_event_id = self.headers.get("Last-Event-ID", "").strip(" \t")
        last_event_id = last_event_id or query.get("lastEventId", [""])[-1]
        if re.search(r"[\0-\x1f\x7f]", last_event_id):
            raise Problem(400, "An event ID has no control characters.")
        # Whoever resumes was let in with these names. A 400 would stop a browser for good.
        is_known = self.server.names_are_known and not last_event_id
        known = self.server.broadcaster.metric_names() if is_known else None
        names = self.choice(query, "name", known)
        levels = self.choice(query, "level", LEVELS)
        history = query.get("history", [""])[-1]
        if history and not re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", history):
            raise Problem(400, "The parameter history is a number of seconds.")
        seconds = float(history) if history else None
        self.respond(200, EVENT_STREAM | PUBLIC)
        if self.command == "HEAD":
            return
        connection, address = self.connection, self.client_address[0]
        wanted = Filter(STREAMS[path], names, levels)
        streaming = self.server.streaming(connection, address, path, wanted, last_event_id, seconds)
        with streaming as subscription:
            try:
                for frame in subscription.frames():
                    connection.sendall(frame)
                    subscription.events += frame.count(b"\ndata: ")
            except OSError as problem:
                self.server.end_stream(connection, subscription, problem)

    def choice(
        self, query: Mapping[str, list[str]], key: str, allowed: Iterable[str] | None
    ) -> frozenset[str]:
        """The values of a filter, given several times or with commas.

        Raises Problem for one that is not allowed. `allowed` is None while nobody knows."""
        texts = query.get(key, ())
        values = frozenset(value for text in texts for value in text.split(",") if value)
        if allowed is not None and not values <= set(allowed):
            raise Problem(400, f"The parameter {key} is one or more of {', '.join(allowed)}.")
        return values

    def respond(self, status: int, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """Sends a whole answer, or the head of a stream.

        HEAD gets the same headers and no body (RFC 9110, 9.3.2)."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Connection", "close")
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "sse-dashboard"

    def log_message(self, format: str, *args: Any) -> None:
        line = (format % args).encode("unicode_escape").decode()
        logger.debug("%s %s", self.client_address[0], line)


# --- Server: sockets and lifetimes ---------------------------------------------------------------

# Set on the listening socket, and inherited by those it accepts. What a system lacks is left out.
SOCKET_OPTIONS = [
    ("IPPROTO_TCP", "TCP_NODELAY", 1),  # a frame is one write: there is nothing to wait for
    ("SOL_SOCKET", "SO_SNDBUF", SEND_BUFFER_BYTES),
    ("IPPROTO_IPV6", "IPV6_V6ONLY", 0),  # `::` is for IPv4 too; an IPv4 socket does not need it
]
if sys.platform == "win32":
    # Without it another program could take the same port. SO_REUSEADDR means just that there.
    SOCKET_OPTIONS.append(("SOL_SOCKET", "SO_EXCLUSIVEADDRUSE", 1))

NO_ROOM_BODY = b'{"error": "There is no room for another connection; try again later."}\n'
NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Access-Control-Allow-Origin: *\r\nX-Content-Type-Options: nosniff\r\n"
    b"Retry-After: %d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
) % (RETRY_AFTER_SECONDS, len(NO_ROOM_BODY), NO_ROOM_BODY)
THROW_AWAY = struct.pack("ii", 1, 0)  # a value of SO_LINGER: nothing is kept after a close
STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # no descriptor to be had
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH)  # how the kernel may call a vanished peer


def collect_panels(panels: Iterable[Panel], sources: Iterable[Source]) -> list[Panel]:
    """A program's panels and those of its sources. Raises TypeError, ValueError for wrong ones."""
    collected = list(panels)
    for source in sources:
        if not callable(getattr(source, "events_at", None)):
            raise TypeError(f"a source is an object with events_at(tick), not {source!r}")
        collected += getattr(source, "panels", ())
    metrics: set[str] = set()
    for panel in collected:
        if not isinstance(panel, Panel):
            raise TypeError(f"a panel is made by Panel(), and not {panel!r}")
        if twice := metrics & panel.metrics.keys():
            raise ValueError(f"{min(twice)} is in two panels")
        metrics |= panel.metrics.keys()
    return collected


def why_it_ended(connection: socket.socket, problem: OSError | None) -> str:
    """The reason for a stream's end: its socket raised a problem, or its input ended (None).

    The kernel reports once that it gave up a peer: to whoever reads or writes next. The other of
    the two threads finds a socket that is not connected, and cannot know why. It gets ""."""
    if problem is None:
        try:
            connection.getpeername()
        except OSError:
            number = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not number:
                return ""
            problem = OSError(number, os.strerror(number))  # nobody was told yet
        else:
            return "closed"
    if isinstance(problem, TimeoutError) or problem.errno in UNREACHABLE:
        return "stalled"
    return "closed"


# In Linux's struct tcp_info: how often a packet and how often a probe of a full window was sent in
# vain, the packets in flight, the bytes that the peer has acknowledged, and those yet to be sent.
TCP_INFO = struct.Struct("=2xBB20xI92xQ16xI")
IN_VAIN = 3  # so often, and the peer seems to have vanished


class OpenStream:
    """A stream, and how long its client may go on taking nothing.

    TCP_INFO tells what the peer's kernel has acknowledged. TCP_USER_TIMEOUT and a timeout of a
    write would be less to read, but they end slow readers: the kernel of a client takes what it has
    room for, some 100 KB, and makes no more room until half of that was read. So for half a minute
    nothing tells a client that reads SLOWEST_BYTES a second from one that does not read."""

    def __init__(self, connection: socket.socket, subscription: Subscription) -> None:
        self.subscription = subscription
        self._connection = connection
        self._taken = 0  # bytes
        self._patience = SEND_TIMEOUT_SECONDS

    def is_stalled(self, passed: float) -> bool:
        """Whether the patience has ended. `passed` is in seconds, since this was asked before.

        It begins anew when there is nothing to take, and grows with what is taken."""
        if sys.platform != "linux":
            return False  # the timeout of a write has to do: see Handler
        with suppress(OSError, struct.error):
            info = self._connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size)
            resent, probes, in_flight, taken, unsent = TCP_INFO.unpack(info)
            self._patience -= passed
            if taken > self._taken or not (in_flight or unsent):
                patience = max(self._patience, SEND_TIMEOUT_SECONDS)
                patience += (taken - self._taken) / SLOWEST_BYTES
                self._patience = min(patience, SEND_TIMEOUT_SECONDS + BUFFERED_SECONDS)
                self._taken = taken
            elif max(resent, probes) >= IN_VAIN:  # a kernel that takes no more answers a probe
                self._patience = min(self._patience, SEND_TIMEOUT_SECONDS)
        return self._patience < 0


# What asks a program to end: Ctrl-C, `kill`, and on Windows Ctrl-Break.
ENDING_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
]


class Interrupt:
    """The handler of these signals: the first one unwinds the main thread by a KeyboardInterrupt.

    A second one ends the process at once."""

    def __init__(self) -> None:
        self.pid = os.getpid()  # of the process that took the signals
        self._holds_back = self._has_come = False

    def __call__(self, signal_number: int, frame: object) -> None:
        for each in ENDING_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != self.pid:  # a forked process has no server to end in order
            os.kill(os.getpid(), signal_number)
        self._has_come = self._holds_back
        if not self._holds_back:
            raise KeyboardInterrupt

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Lets a signal wait for the end of a `with` block, if this is the main thread.

        An exception may come between any two steps of Python. In a block that takes locks it could
        come when one was just taken, which nobody would give back then."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._holds_back = True
        try:
            yield
        finally:
            self._holds_back = False
            if self._has_come:
                self._has_come = False
                raise KeyboardInterrupt


interrupt = Interrupt()


def take_signals() -> dict[int, Any]:
    """Lets every one of ENDING_SIGNALS do the same, and returns the handlers that were there.

    A handler that the program has set itself stays. Python lets only the main thread set one."""
    replaced = {}
    if threading.current_thread() is threading.main_thread():
        interrupt.pid = os.getpid()
        for each in ENDING_SIGNALS:
            before = signal.getsignal(each)  # None: one that was not set by Python
            if isinstance(before, signal.Handlers) or before is signal.default_int_handler:
                replaced[int(each)] = signal.signal(each, interrupt)
    return replaced


def give_back_signals(replaced: Mapping[int, Any]) -> None:
    """Sets the handlers again that take_signals() has returned, in the main thread."""
    if threading.current_thread() is threading.main_thread():
        for each, handler in replaced.items():
            signal.signal(each, handler)


class DashboardServer(ThreadingHTTPServer):
    """The dashboard. Entering its `with` block serves. Leaving it ends every stream in order,
    within two seconds.

        with DashboardServer(sources=[Simulation(), MySource()]) as server:
            server.publish(alert("info", "Hello"))
            server.wait()

    The constructor takes the port. It raises OSError when it cannot, or when index.html is
    missing, TypeError for what is no source, and ValueError for an interval, a history or a number
    of clients that the command would refuse. Override `stream_opened` and `stream_closed` to see
    clients come and go."""

    request_queue_size = BACKLOG
    allow_reuse_address = sys.platform != "win32"
    generator_class = Generator  # gives the ticks: a test has one whose ticks come by hand

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        sources: Iterable[Source] | None = None,
        panels: Iterable[Panel] = (),
        interval: float = INTERVAL_SECONDS,
        history: float = HISTORY_SECONDS,
        max_clients: int = MAX_CLIENTS,
        title: str = TITLE,
    ) -> None:
        """`interval` and `history` are in seconds. Without `sources` it shows the simulation.

        `panels` are for metrics that no source has a panel for, before those of the sources. Port
        0 is any free one. The title is the page's."""
        check_range("max_clients", max_clients, CLIENTS_RANGE)
        if sources is None:
            sources = [Simulation(interval=interval)]
        sources = list(sources)
        panels = collect_panels(panels, sources)
        self.broadcaster = Broadcaster(interval, history, title, panels)
        self.page = load_page(Path(__file__).resolve().with_name("index.html"), title)
        for source in sources:
            interval_ms = getattr(source, "interval_ms", self.broadcaster.interval_ms)
            if interval_ms != self.broadcaster.interval_ms:
                raise ValueError(f"the interval is {interval} s, but {source!r} has another")
        self.generator = self.generator_class(self.broadcaster, sources)
        # Nobody knows the names of another source before it has spoken, and to answer 400 then
        # would stop a browser for good.
        self._sources_are_known = bool(sources) and self.generator.replayable == sources
        self.max_clients = max_clients
        # Guards the books, which are the dicts below. A thread may give its own connection a new
        # deadline without it. Notified when a connection has been answered.
        self._books = threading.Condition()
        self.deadlines: dict[socket.socket, float] = {}  # of each connection that was let in
        self._lingering: dict[socket.socket, float] = {}  # answered: until when each may stay
        self._streams: dict[socket.socket, OpenStream] = {}
        self._ended = dict.fromkeys(REASONS, 0)
        self._looked_at = time.monotonic()
        self._starved = self._blind = False  # so that a lasting trouble is logged once
        self._log: PatientLog | None = None
        self._serving = threading.Thread(target=self._serve, name="serve", daemon=True)
        self._down = threading.Event()
        host = host.removeprefix("[").removesuffix("]")  # as an address with a port has it
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # A name like localhost may have addresses of both families. IPv6 may be off.
        self.address_family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        super().__init__((str(address[0]), port), Handler)

    @property
    def names_are_known(self) -> bool:
        """Whether a metric that is not held, and has no panel, does not exist."""
        return self._sources_are_known and not self.broadcaster.names_are_open

    def server_bind(self) -> None:
        """Takes the port, without looking up the host's full name as the base class does.
        That can last half a minute."""
        for level, option, value in SOCKET_OPTIONS:
            with suppress(AttributeError, OSError):
                self.socket.setsockopt(getattr(socket, level), getattr(socket, option), value)
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = int(self.server_address[1])
        # For a browser on this machine. `::` is for IPv4 too, which works where IPv6 is off.
        host = self.server_name if self.server_name not in ("0.0.0.0", "::") else "127.0.0.1"
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def __enter__(self) -> DashboardServer:
        with suppress(ImportError, ValueError, OSError):
            import resource  # not on Windows

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            wanted = max(soft, min(self.max_clients + SPARE_DESCRIPTORS, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        self._watched = selectors.DefaultSelector()
        self._signals = take_signals()
        self._pid = os.getpid()
        try:
            # For a program that has not said where its log goes. sys.stderr may be None.
            if sys.stderr and not logger.hasHandlers():
                self._log = PatientLog()
                logger.addHandler(self._log)
            self.generator.start()
            self._serving.start()
        except BaseException:  # no thread was to be had, or a signal came
            self.__exit__()
            raise
        return self

    def _serve(self) -> None:
        # A thread of this policy does not push aside the thread that wakes it, and the clients'
        # threads inherit it. So the generator fills many queues in one go, instead of losing the
        # processor at each: 1.1 to 1.9 times less CPU for an event.
        with suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self.serve_forever(WATCH_SECONDS)

    def wait(self) -> None:
        """Blocks until another thread leaves the `with` block, or a signal unwinds it."""
        # An Event's wait() would have its lock when the signal comes, and never give it back. And a
        # sleep without an end could begin just after the signal.
        while not self._down.is_set():
            time.sleep(WATCH_SECONDS)

    def run(self) -> None:
        """Serves until a signal comes: prints the URL, and waits. For a program's main thread."""
        with self:
            with suppress(OSError):  # nobody may be there to read it
                print(f"The dashboard is at {self.url} (Ctrl-C ends it)", flush=True)
            self.wait()

    def publish(self, *events: Event) -> None:
        """Publishes events at once, from any thread, as one batch. Never waits for a client.

        Raises what Broadcaster.publish() raises."""
        with interrupt.held_back():
            self.broadcaster.publish(*events)

    def __exit__(self, problem: type[BaseException] | None = None, *_: object) -> Any:
        """The one way down.

        A KeyboardInterrupt has done its work then: the program goes on after the block. In a forked
        process nothing is done, for the server is its parent's."""
        if os.getpid() != self._pid:
            return False
        with suppress(KeyboardInterrupt), interrupt.held_back():  # it goes down already
            self._go_down()
        return problem is KeyboardInterrupt

    def _go_down(self) -> None:
        self._down.set()
        # No more ticks.
        self.generator.stop()
        # No more clients. Shutting the socket down wakes the serve thread, which could sleep for
        # WATCH_SECONDS more. A forked process may hold a copy: it accepts nobody then either.
        hang_up(self.socket)
        if self._serving.is_alive():
            self.shutdown()
        self.server_close()
        # Every stream writes what is queued, and ends.
        self.broadcaster.close()
        with self._books:
            self._books.wait_for(self._has_no_streams, DRAIN_SECONDS)
            # Whoever is left is cut.
            for connection in self.deadlines:
                hang_up(connection)
            self._books.wait_for(lambda: not self.deadlines, HANG_UP_SECONDS)
            # Nobody lingers.
            for connection in list(self._lingering):
                self._let_go(connection)
            self._watched.close()
        give_back_signals(self._signals)
        if self._log:
            logger.removeHandler(self._log)
            self._log.close()

    def _has_no_streams(self) -> bool:
        return not self.broadcaster.snapshot()["connections"]

    # The life of a connection, in order. The serve thread accepts it: get_request,
    # verify_request, process_request. A thread of its own runs a Handler, which reads the request
    # and answers it, or streams within streaming(). close_request comes last, and service_actions
    # ends what lasts too long.

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. Without a descriptor for it, waits a little: serve_forever()
        would try again at once."""
        try:
            accepted = super().get_request()
        except OSError as problem:
            if problem.errno in STARVED:
                if not self._starved:
                    logger.error("cannot accept connections for now: %s", problem.strerror)
                self._starved = True
                with self._books:
                    for connection in list(self._lingering):  # they have had their answer
                        self._let_go(connection)
                self._down.wait(ACCEPT_PAUSE_SECONDS)
            raise
        self._starved = False
        return accepted

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Lets a connection in. When the house is full, all it gets is the 503."""
        with self._books:
            if len(self.deadlines) < self.max_clients:
                self.deadlines[request] = time.monotonic() + REQUEST_SECONDS
                return True
        self._refuse(request)
        return False

    def _refuse(self, request: socket.socket) -> None:
        """Sends the 503. It fits the socket's empty buffer, so this never blocks."""
        with self._books:
            self._ended["refused"] += 1
        with suppress(OSError):
            request.sendall(NO_ROOM)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the connection, if one can be had."""
        try:
            super().process_request(request, client_address)
        except (RuntimeError, MemoryError) as problem:
            logger.error("no thread for a connection of %s: %s", client_address[0], problem)
            self._refuse(request)
            self.shutdown_request(request)

    @contextmanager
    def streaming(
        self,
        connection: socket.socket,
        address: str,
        path: str,
        wanted: Filter,
        last_event_id: str,
        history: float | None,
    ) -> Iterator[Subscription]:
        """A client's subscription, for the length of a `with` block in the connection's thread.

        While the block writes the stream, the serve thread watches the connection, and ends the
        stream when its client leaves."""
        started_at = time.monotonic()
        with self.broadcaster.subscribe(wanted, last_event_id, history) as subscription:
            with self._books:
                self.deadlines[connection] = math.inf
                self._streams[connection] = OpenStream(connection, subscription)
                self._watch(connection)
            try:
                try:
                    self.stream_opened(address, path)
                    yield subscription
                except BaseException:
                    self.broadcaster.end(subscription, "failed")
                    raise
                finally:
                    reason, events = subscription.reason, subscription.events
                    with self._books:
                        self._ended[reason] += 1
                        del self._streams[connection]
                        self._unwatch(connection)
                    seconds = time.monotonic() - started_at
                    self.stream_closed(address, path, reason, seconds, events)
            except OSError as problem:  # of a hook. handle_error() would take it for a departure
                raise RuntimeError(f"a hook failed for {path} of {address}") from problem

    def end_stream(
        self, connection: socket.socket, subscription: Subscription, problem: OSError | None
    ) -> None:
        """Ends a stream whose socket raised a problem, or whose input ended (None). A client that
        takes nothing is a TimeoutError.

        Both the client's thread and the serve thread may notice, in any order."""
        with self._books:
            if reason := why_it_ended(connection, problem):
                self.broadcaster.end(subscription, reason)
                if reason == "stalled":  # what it has not taken would stay in the kernel's memory
                    with suppress(OSError):
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, THROW_AWAY)
                hang_up(connection)  # its thread may be in the middle of a write

    def close_request(self, request: Any) -> None:
        """Makes room for another, and lets this one linger until its client closes as well.

        A close before that could take the response with it (RFC 9112, 9.6). Never blocks."""
        with self._books:
            self.deadlines.pop(request, None)
            self._books.notify_all()
            self._lingering[request] = time.monotonic() + LINGER_SECONDS
            if len(self._lingering) > MAX_LINGERING:
                self._let_go(next(iter(self._lingering)))  # the oldest: it has its answer
            request.setblocking(False)
            if self._watch(request):
                self._look_at(request)
            else:
                self._let_go(request)

    def service_actions(self) -> None:
        """Looks after all connections. Called by serve_forever() at least every WATCH_SECONDS."""
        now = time.monotonic()
        passed = now - self._looked_at
        if passed < WATCH_SECONDS:
            return
        self._looked_at = now
        passed = min(passed, 2 * WATCH_SECONDS)  # the process may have been stopped meanwhile
        try:
            self.generator.name_stuck()
            with self._books:
                for connection, stream in self._streams.items():
                    if stream.is_stalled(passed):
                        self.end_stream(connection, stream.subscription, TimeoutError())
                for connection, deadline in self.deadlines.items():
                    if deadline < now:
                        hang_up(connection)
                for connection, deadline in list(self._lingering.items()):
                    if deadline < now:
                        self._let_go(connection)
                # Windows refuses to look at no socket at all.
                for key, _ in self._watched.select(0) if self._watched.get_map() else ():
                    self._look_at(key.fileobj)
            self._blind = False
        except Exception:  # it must not end the serve thread: nobody would be accepted any more
            if not self._blind:
                logger.exception("cannot look after the connections")
            self._blind = True

    # What follows is called while `_books` is held.

    def _watch(self, connection: socket.socket) -> bool:
        """Whether the serve thread can still look at it: a thread may come late to the end."""
        with suppress(ValueError, OSError):
            self._watched.register(connection, selectors.EVENT_READ)
            return True
        return False

    def _unwatch(self, connection: socket.socket) -> None:
        with suppress(KeyError, ValueError):  # it was never watched, or the server has ended
            self._watched.unregister(connection)

    def _look_at(self, connection: Any) -> None:
        """Throws away what a client sent unasked, and notices when it has left.

        Does not block: a connection that lingers never does, and a stream's has been selected."""
        problem = None
        try:
            if connection.recv(DRAIN_BYTES):
                return
        except BlockingIOError:
            return
        except OSError as raised:
            problem = raised
        if stream := self._streams.get(connection):
            self.end_stream(connection, stream.subscription, problem)
        else:
            self._let_go(connection)

    def _let_go(self, connection: socket.socket) -> None:
        """Closes a connection that lingers."""
        self._lingering.pop(connection, None)
        self._unwatch(connection)
        connection.close()

    # What a program may override, or ask.

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A departure is no error. Anything else is logged with its traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("a request of %s failed", client_address[0])

    def stream_opened(self, address: str, path: str) -> None:
        """A hook: a client's stream begins. Called in the client's thread."""

    def stream_closed(
        self, address: str, path: str, reason: str, seconds: float, events: int
    ) -> None:
        """A hook: a client's stream has ended, for one of REASONS. Called in the client's thread.

        `seconds` is how long it lasted, `events` how many were written."""
        logger.debug(
            "%s %s ended after %.1f s and %d events: %s", address, path, seconds, events, reason
        )

    def status(self) -> dict[str, Any]:
        """The snapshot at /api/status."""
        return {"status": "ok", **self.broadcaster.snapshot(), "ended": dict(self._ended)}


# --- Simulation: a machine as a function of time -------------------------------------------------

# An example of a source. Every curve is a function of the seed and the time, and nothing else.

PERCENT: dict[str, Any] = {
    "min": 0, "max": 100, "thresholds": {"warning": 85, "error": 95}, "decimals": 1,
}  # fmt: skip
PANELS = (
    Panel("CPU", {"cpu_usage": ""}, gauge="arc", **PERCENT),
    Panel("Memory", {"memory_usage": ""}, gauge="bar", **PERCENT),
    Panel("Network", {"network_in": "in", "network_out": "out"}),
    Panel("Disk", {"disk_usage": ""}, gauge="bar", **PERCENT),
    Panel("Temperature", {"temperature": ""}, thresholds={"warning": 75, "error": 85}, decimals=1),
    Panel("Load", {"load_average": ""}, thresholds={"warning": 4, "error": 6}, decimals=2),
)


class Wave(NamedTuple):
    """A part of a reading that wanders between 0 and `height`."""

    cause: str  # readings that share a cause move together
    period: float  # in seconds: how long it keeps a direction
    height: float
    power: int = 1  # a high one makes rare peaks


class Reading(NamedTuple):
    """A metric of the simulated machine: a base and its waves, within `noise` of their sum."""

    label: str  # inside a sentence
    unit: str
    base: float
    waves: tuple[Wave, ...]
    noise: float = 0
    lag: float = 0  # in seconds: how far it is behind the causes of its waves
    digits: int = 1  # after the decimal point


READINGS = {
    "cpu_usage": Reading(
        "CPU usage", "%", 4,
        (Wave("work", 170, 48), Wave("work", 31, 12), Wave("jobs", 37, 60, power=9)),
        noise=0.08,
    ),
    "memory_usage": Reading(
        "memory usage", "%", 34,
        (Wave("memory", 240, 54), Wave("jobs", 37, 10, power=4)),
        noise=0.004, lag=2,
    ),
    "disk_usage": Reading(
        "disk usage", "%", 48,
        (Wave("disk", 900, 44), Wave("disk", 60, 1)),
    ),
    "network_in": Reading(
        "incoming traffic", "B/s", 30_000,
        (Wave("in", 50, 150_000), Wave("in", 20, 9_000_000, power=12)),
        noise=0.3, digits=0,
    ),
    "network_out": Reading(
        "outgoing traffic", "B/s", 15_000,
        (Wave("out", 65, 90_000), Wave("out", 23, 5_000_000, power=14)),
        noise=0.3, digits=0,
    ),
    "temperature": Reading(
        "temperature", "°C", 36,
        (Wave("work", 170, 24), Wave("room", 400, 6), Wave("jobs", 37, 28, power=4)),
        noise=0.006, lag=9,
    ),
    "load_average": Reading(
        "load average", "", 0.2,
        (Wave("work", 170, 2.6), Wave("jobs", 37, 3.6, power=5)),
        noise=0.03, lag=4, digits=2,
    ),
}  # fmt: skip

# One event of each level falls into every stretch of so many seconds. That makes some two a
# minute, and every level within ten minutes.
SYSTEM_EVENTS = {
    "info": (80, (
        "Service restarted: web", "Configuration reloaded",
        "Log files rotated", "Scheduled task started: report",
    )),
    "success": (140, (
        "Backup finished", "Deployment completed",
        "Health check passed", "Certificate renewed",
    )),
    "warning": (200, (
        "Slow response from the database", "Certificate expires in 14 days",
        "Outgoing mail is queueing up",
    )),
    "error": (290, (
        "Health check failed: cache", "Backup target not reachable",
        "Worker process crashed and restarted",
    )),
}  # fmt: skip


@lru_cache(maxsize=8192)
def chance(*key: object) -> float:
    """A number in [0, 1), fixed by its key: the same on every machine, in every Python."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def wander(seed: int, cause: str, period: float, at: float) -> float:
    """Wanders between 0 and 1: takes a new direction every `period` seconds."""
    slot, phase = divmod(at / period, 1)
    here, there = chance(seed, cause, period, slot), chance(seed, cause, period, slot + 1)
    return here + (there - here) * phase * phase * (3 - 2 * phase)


@lru_cache(maxsize=8192)
def value_at(seed: int, name: str, tick: int) -> float:
    """The reading of a metric: finite, rounded, not below zero, a percentage not above 100."""
    reading = READINGS[name]
    at = tick / 1000 - reading.lag
    value = reading.base
    for cause, period, height, power in reading.waves:
        value += height * wander(seed, cause, period, at) ** power
    value *= 1 + reading.noise * (2 * chance(seed, name, tick) - 1)
    if reading.unit == "%":
        value = min(value, 100.0)
    return round(value, reading.digits or None)


@lru_cache(maxsize=8192)
def peak_at(seed: int, name: str, tick: int, length: int, step: int) -> float:
    """The highest reading of a metric at the ticks of `length` milliseconds, `step` apart."""
    return max(value_at(seed, name, moment) for moment in range(tick, tick - length, -step))


def severity(limits: Sequence[float], values: Iterable[float]) -> int:
    """How many of its limits a metric has crossed, from its values of the last CALM_SECONDS."""
    worst = max(values, default=-math.inf)
    return sum(worst >= limit for limit in limits)


def threshold_alert(
    panel: Panel, name: str, label: str, before: int, now: int, text: str
) -> list[Event]:
    """What there is to say when a metric's severity was one number and is another now."""
    if now > before:
        level = [level for level in TROUBLE if level in panel.thresholds][now - 1]
        word = {"warning": "High", "error": "Critical"}[level]
        return [alert(level, f"{word} {label} detected: {text}", name)]
    if before and not now:
        return [alert("success", f"{label[0].upper()}{label[1:]} back to normal: {text}", name)]
    return []


class Simulation:
    """A machine whose events at a tick depend on the seed, the interval and the tick alone.

    So a restarted server continues the same curves under the same IDs, and any tick can be asked
    for at any time."""

    replayable = True
    panels = PANELS

    def __init__(self, seed: int = 0, interval: float = INTERVAL_SECONDS) -> None:
        """`interval` is in seconds. It must be the server's: an alert compares two ticks."""
        check_range("interval", interval, INTERVAL_RANGE)
        self.seed = seed
        self.interval_ms = round(interval * 1000)
        self.check_ms = self.interval_ms * math.ceil(CHECK_SECONDS * 1000 / self.interval_ms)

    def events_at(self, tick: int) -> list[Event]:
        """A metric event for each of READINGS, in their order, then the alerts of the tick."""
        events = []
        for name, reading in READINGS.items():
            events.append(metric(name, value_at(self.seed, name, tick), reading.unit))
        if tick % self.check_ms == 0:
            for panel in PANELS:
                events += self._threshold_alerts(panel, tick)
        return events + self._system_alerts(tick)

    def _threshold_alerts(self, panel: Panel, tick: int) -> list[Event]:
        alerts: list[Event] = []
        for name in panel.metrics if panel.limits else ():
            reading = READINGS[name]
            before = self._severity(panel, name, tick - self.check_ms)
            now = self._severity(panel, name, tick)
            text = f"{value_at(self.seed, name, tick):.{reading.digits}f} {reading.unit}".rstrip()
            alerts += threshold_alert(panel, name, reading.label, before, now, text)
        return alerts

    def _severity(self, panel: Panel, name: str, tick: int) -> int:
        oldest = tick - round(CALM_SECONDS * 1000)
        moments = range(tick, oldest - 1, -self.check_ms)
        step = self.interval_ms
        peaks = [peak_at(self.seed, name, moment, self.check_ms, step) for moment in moments]
        return severity(panel.limits, peaks)

    def _system_alerts(self, tick: int) -> list[Event]:
        """The random events that fall between the tick before, and this one."""
        before = tick - self.interval_ms
        alerts = []
        for level, (seconds, messages) in SYSTEM_EVENTS.items():
            stretch = seconds * 1000
            for slot in range(before // stretch, tick // stretch + 1):
                moment = int((slot + chance(self.seed, level, slot)) * stretch)
                if before < moment <= tick:
                    which = int(chance(self.seed, level, "which", slot) * len(messages))
                    alerts.append(alert(level, messages[which]))
        return alerts


class WithAlerts:
    """Another source, and the alerts that follow from the thresholds of its panels.

    The rule is the simulation's, and the page's: a metric is in trouble from a threshold on, until
    it was below it for CALM_SECONDS. It remembers the values of that time, so it is not replayable,
    whatever the other source is."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.panels: Sequence[Panel] = getattr(source, "panels", ())
        self._recent: dict[str, list[tuple[int, float]]] = {}  # ticks and values, by metric
        self._severity: dict[str, int] = {}

    def events_at(self, tick: int) -> Iterator[Event]:
        for event in list(self.source.events_at(tick)):  # all or none: it may raise in the middle
            yield event
            for panel in self.panels:
                if event.type == "metric" and panel.limits and event.topic in panel.metrics:
                    yield from self._alerts(panel, event.fields, tick)

    def _alerts(self, panel: Panel, reading: Mapping[str, Any], tick: int) -> list[Event]:
        name, value, unit = reading["name"], reading["value"], reading["unit"]
        oldest = tick - CALM_SECONDS * 1000
        recent = [pair for pair in self._recent.get(name, ()) if pair[0] >= oldest]
        self._recent[name] = [*recent, (tick, value)]
        before = self._severity.get(name, 0)
        now = self._severity[name] = severity(panel.limits, [v for _, v in self._recent[name]])
        digits = ".12g" if panel.decimals is None else f".{panel.decimals}f"
        label = f"{panel.title} {panel.metrics[name]}".rstrip()
        text = f"{value:{digits}} {unit}".rstrip()
        return threshold_alert(panel, name, label, before, now, text)


# --- Command line --------------------------------------------------------------------------------


def number(kind: Callable[[str], float], allowed: tuple[float, float], text: str) -> float:
    """What argparse calls for the text of an option: a number within a range."""
    low, high = allowed
    with suppress(ValueError):
        if low <= (value := kind(text)) <= high:
            return value
    what = "an integer" if kind is int else "a number"
    raise argparse.ArgumentTypeError(f"{text!r} is not {what} from {low:g} to {high:g}")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command. A wrong one ends the process with status 2."""
    parser = argparse.ArgumentParser(
        description="A live dashboard over Server-Sent Events.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(
        name: str,
        default: float | str,
        text: str,
        kind: Callable[[str], Any] = str,
        allowed: tuple[float, float] | None = None,
    ) -> None:
        if allowed:
            kind = partial(number, kind, allowed)
            text += f", {allowed[0]:g} to {allowed[1]:g}"
        parser.add_argument(name, default=default, help=text, type=kind)

    add("--host", "127.0.0.1", "address or name to listen on, IPv4 or IPv6")
    add("--port", 8000, "where to listen; 0 is any free one", int, (0, 65_535))
    add("--interval", INTERVAL_SECONDS, "seconds between ticks", float, INTERVAL_RANGE)
    add("--seed", 0, "of the simulation: the same seed, the same curves", int)
    add("--history", HISTORY_SECONDS, "seconds of events held", float, HISTORY_RANGE)
    add("--max-clients", MAX_CLIENTS, "open connections of any kind", int, CLIENTS_RANGE)
    verbose = "log every request and every stream's end"
    parser.add_argument("--verbose", action="store_true", help=verbose)
    options = parser.parse_args(arguments)
    try:
        check_times(options.interval, options.history)
    except ValueError as problem:
        parser.error(f"argument --history: {problem}")
    return options


def advice(problem: Exception) -> str:
    """What to do when the server cannot start."""
    if not isinstance(problem, (OSError, UnicodeError)) or getattr(problem, "errno", 0) in STARVED:
        return "allow it more threads, files or memory (see ulimit)"
    if getattr(problem, "filename", None):
        return "index.html belongs beside sse_dashboard.py"
    return "try another --host or --port"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    options = parse_arguments(arguments)
    take_signals()  # before the history is filled, which takes up to some seconds
    try:
        logger.setLevel(logging.DEBUG if options.verbose else logging.WARNING)
        DashboardServer(
            options.host,
            options.port,
            sources=[Simulation(options.seed, options.interval)],
            interval=options.interval,
            history=options.history,
            max_clients=options.max_clients,
        ).run()
    except KeyboardInterrupt:
        pass  # the server had not begun yet
    except (OSError, UnicodeError, RuntimeError, MemoryError) as problem:
        # UnicodeError: the host is no name. RuntimeError: no thread is to be had.
        where = f"{options.host!r} port {options.port}"
        why = str(problem) or "out of memory"
        print(f"cannot serve on {where}: {why}; {advice(problem)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
