#!/usr/bin/env python3
"""A live dashboard over Server-Sent Events, on the standard library alone.

    python sse_dashboard.py              then open http://localhost:8000

One tick's journey:

    Simulation.events_at(tick) -> events -> encoded once -> frame (bytes)      once a tick, in the generator thread
      -> Broadcaster -> each Subscription's queue -> its thread -> socket      once a client: one put, one write
      ~~> EventSource -> state -> one animation frame -> canvas                in the page, index.html

Nothing flows back but the last event ID that a client sends when it connects again. The file builds this from its parts:
events, simulation, subscription, broadcaster, generator, handler, server, command line.

Threads, and who ends them:

    main        fills the history, then waits for a signal; leaving its `with` block is the one way down
    generator   computes and publishes the ticks; DashboardServer.__exit__ ends it first
    serve       accepts connections, and between them cuts those that left or overran their deadline; __exit__ ends it next
    one for each connection: answers one request. A stream's thread sleeps on its queue, until its subscription is ended
                (the client left, ticks were skipped, the server stops) or its socket is cut (it was too slow, or stalled)

Words:

    tick        a multiple of the interval, in Unix milliseconds: the moment that readings belong to
    event ID    <tick>-<number within the tick>: ordered, and the same in every server with the same seed and interval
    batch       the events of one tick, or a single event published between two ticks
    frame       the bytes of one or more whole events: what one write sends

Deliberate choices:

  * One request a connection: no body is ever taken for the next request, and a stream ends with its connection.
  * The readings are a function of seed and time: a restart loses nothing, and two servers need not know each other.
  * History and registration are taken under the lock that publishing takes: that alone keeps gaps and doubles out.
  * A client that does not keep up is disconnected, never waited for: it comes back with its last event ID.

Standards: WHATWG HTML "Server-sent events", RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import _thread
import argparse
import base64
import errno
import hashlib
import json
import logging
import math
import mmap
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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote

logger = logging.getLogger("sse_dashboard")

# ------------------------------------------------------------------------------------------------------- Settings ----

INTERVAL_SECONDS = 1.0  # between ticks: what a person still sees as live
HISTORY_SECONDS = 300.0  # held in memory: the page's longest window
MAX_HISTORY_TICKS = 20_000  # some 100 MB of history, computed within 3 s at the start
MAX_CLIENTS = 1000  # open connections of any kind: each costs a thread
CHECK_MS = 1000  # at least, between two looks of the simulation at its thresholds
CALM_MS = 30_000  # below a threshold, until the simulation calls that normal: so nothing flaps

NEWEST_SECONDS = 0.001  # of history for a client that asks for none: the newest tick
RETRY_MS = (
    2000,
    4000,
)  # the reconnection time: random, so that a restart is not met by all clients at once
HEARTBEAT_SECONDS = (
    15.0  # of silence, then a comment: WHATWG HTML advises it against proxies that give up
)
FUTURE_SECONDS = 60.0  # an ID further ahead of the clock comes from no other server of ours
CATCH_UP_SECONDS = 60.0  # a pause up to this, or as far as history goes, is made up for

QUEUE_FRAMES = 100  # that a client may be behind before it is disconnected
SEND_BUFFER_BYTES = (
    16 * 1024
)  # the kernel's share of a client's backlog: by default it hides hours of it
SEND_TIMEOUT_SECONDS = (
    10  # whole ones: a peer that takes or acknowledges nothing for this long is gone
)
REPLAY_EVENTS = 64  # joined and written at a time when history is sent: some 10 KB
CLIENTS_AT_ONCE = (
    128  # woken before publishing rests and lets them run: woken all at once, they queue up for the
)
REST_SECONDS = 0.0001  # ... interpreter lock and are switched to twice: with 1,000 clients a third more CPU an event

REQUEST_SECONDS = 10.0  # for a request to arrive whole, however slowly its bytes drip
MAX_LINE_BYTES = (
    65_536  # of the request line; the base class allows the same for each of 100 header fields
)
RESPONSE_SECONDS = 60.0  # for a response that is no stream to be taken
LINGER_SECONDS = 2.0  # after a response, for the client to close first (RFC 9112, 9.6)
MAX_REFUSED = (
    64  # connections at a time that are told there is no place: with one more, the oldest is cut
)
RETRY_AFTER_SECONDS = 5  # told to a client for whom there is no place
BACKLOG = 1024  # connections that wait to be accepted: a burst, not an overload
SPARE_DESCRIPTORS = (
    128  # for what is no client: those who are refused, files, the listening socket, the selector
)
ACCEPT_PAUSE_SECONDS = 0.1  # when there is no descriptor for a new connection
WATCH_SECONDS = 0.5  # between two looks at all sockets, and of the main thread for a signal: how soon either is noticed
DRAIN_BYTES = (
    8 << 20
)  # of what a client sent unasked, thrown away in one look: more than a receive buffer holds

DRAIN_SECONDS = 0.6  # at the end, for the streams to write what is queued...
HANG_UP_SECONDS = (
    0.3  # ... and for the threads that are then cut; before that, for a source that is still busy
)

# --------------------------------------------------------------------------------- Events: what can be said, as bytes ----

LEVELS = ("info", "success", "warning", "error")
TROUBLE = ("warning", "error")  # the levels that a metric's thresholds can be for, the milder first
to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def timestamp(milliseconds: float) -> str:
    """Unix milliseconds as RFC 3339 writes them, in UTC."""
    seconds, rest = divmod(int(milliseconds), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"


@dataclass(frozen=True)
class Event:
    """Something to tell: an event type, and the fields of the JSON object that says it.

    What cannot be sent raises here, where the mistake is: ValueError for a type of several lines or a number that is not
    finite, TypeError for a value that JSON does not have. Publishing adds the timestamp and the ID."""

    type: str
    fields: Mapping[str, Any]
    json: str = field(init=False, repr=False, compare=False)  # as they were at birth: what is sent

    def __post_init__(self) -> None:
        if not isinstance(self.type, str) or not re.fullmatch(r"[^\r\n\0]+", self.type):
            raise ValueError(
                f"an event's type is one line of text, not empty and without NUL; this is {self.type!r}"
            )
        if {"type", "timestamp"} & self.fields.keys():
            raise ValueError(
                "an event's own fields are not called `type` or `timestamp`: publishing adds those"
            )
        object.__setattr__(self, "json", to_json({"type": self.type, **self.fields}))
        self.json.encode()  # raises for half a surrogate pair

    @property
    def topic(self) -> str:
        """What a filter asks for: a metric's name, an alert's level."""
        return str(self.fields.get("level" if self.type == "alert" else "name", ""))

    def encode(self, moment: str, event_id: str = "") -> bytes:
        """The event's bytes, with its timestamp and ID, and the empty line that ends it.

        JSON escapes line breaks (WHATWG HTML, "Parsing an event stream": U+2028 is none), so the data is one line. The ID
        comes last: a client that takes an ID as it reads it cannot have that of an event which was cut short."""
        end = f"\nid: {event_id}\n\n" if event_id else "\n\n"
        return (
            f'event: {self.type}\ndata: {self.json[:-1]}, "timestamp": "{moment}"}}{end}'.encode()
        )


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    kind = isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind and abs(value) <= sys.float_info.max  # type: ignore[operator]


def metric(name: str, value: float, unit: str = "") -> Event:
    """A reading. The page draws a card and a line for any name, with its unit ("%", "B/s", "°C"). Raises TypeError for another
    type than those, ValueError for a name that a filter could not ask for and a value that is not finite."""
    texts = isinstance(name, str) and isinstance(unit, str)
    if not texts or not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(
            f"a metric is a name, a number and a unit, not {name!r}, {value!r} and {unit!r}"
        )
    if not name or "," in name or not abs(value) <= sys.float_info.max:
        raise ValueError(
            f"a metric's name has no comma and is not empty, its value is finite: not {name!r}, {value!r}"
        )
    return Event("metric", {"name": name, "value": value, "unit": unit})


def alert(level: str, message: str, metric: str = "") -> Event:
    """Something that happened, and the metric that caused it. Raises ValueError for an unknown level, TypeError for no text."""
    if level not in LEVELS:
        raise ValueError(f"an alert's level is one of {', '.join(LEVELS)}, not {level!r}")
    if not isinstance(message, str) or not isinstance(metric, str):
        raise TypeError(f"an alert's message and metric are texts, not {message!r} and {metric!r}")
    return Event(
        "alert", {"level": level, "message": message} | ({"metric": metric} if metric else {})
    )


@dataclass(frozen=True)
class Panel:
    """How metrics are shown: the title of their card, and what each one's line is called there.

    A gauge (`arc` or `bar`) shows one metric within its range, from `min` to `max`. The `thresholds`
    say from which value on a metric is in trouble, by level: `{"warning": 85, "error": 95}`.
    `decimals` are the digits after the point; without it the page finds those that fit.
    Raises ValueError or TypeError for what no page could show."""

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
            raise TypeError(f"a panel's metrics are names and their lines' labels, not {self.metrics!r}")
        if not all(isinstance(text, str) for pair in self.metrics.items() for text in pair):
            raise TypeError(f"a metric's name and label are texts, not {self.metrics!r}")
        numbers = [n for n in (self.min, self.max, *self.thresholds.values()) if n is not None]
        if not all(is_number(n) for n in numbers):
            raise TypeError(f"a panel's range and thresholds are finite numbers, not {numbers!r}")
        if self.min is not None and self.max is not None and not self.min < self.max:
            raise ValueError(f"a panel's min is less than its max, not {self.min!r} and {self.max!r}")
        if self.gauge not in ("", "arc", "bar"):
            raise ValueError(f"a panel's gauge is `arc` or `bar`, not {self.gauge!r}")
        if self.gauge and (self.min is None or self.max is None or len(self.metrics) != 1):
            raise ValueError("a gauge shows one metric, between a min and a max")
        if not self.thresholds.keys() <= set(TROUBLE):
            raise ValueError(f"thresholds are for {' and '.join(TROUBLE)}, not {self.thresholds!r}")
        in_order = [self.thresholds[level] for level in TROUBLE if level in self.thresholds]
        if sorted(set(in_order)) != in_order:
            raise ValueError(f"the threshold of a worse level is higher, not {self.thresholds!r}")
        if self.decimals is not None and self.decimals not in range(10):
            raise ValueError(f"a panel's decimals are a number from 0 to 9, not {self.decimals!r}")

    def as_fields(self) -> dict[str, Any]:
        """What the `panels` event says of it: the fields that were given."""
        return {name: value for name, value in vars(self).items() if value not in ("", None, {})}


class Source(Protocol):
    """Where events come from: the simulation, or a program's own. One that has `replayable = True` promises that its events
    depend on the tick alone: history is then filled from it at the start, and a resume over a restart misses nothing."""

    def events_at(self, tick: int) -> Iterable[Event]:
        """The events of a tick, in Unix milliseconds. Called in the generator thread, for the history in the main thread."""


# --------------------------------------------------------------------------------- Subscription: one client's queue ----

EventID = tuple[int, int]  # the tick and the number within it, compared by order


class Entry(NamedTuple):
    """An event that was published."""

    id: EventID
    type: str
    topic: str
    wire: bytes


class Filter(NamedTuple):
    """What a client wants to see. Clients with equal filters share every frame."""

    types: frozenset[str] | None = (
        None  # of events; None: all, and this server's `status` with them
    )
    names: frozenset[str] = frozenset()  # of metrics; empty: all
    levels: frozenset[str] = frozenset()  # of alerts; empty: all
    after: EventID = (
        0,
        0,
    )  # later events only: for a client that comes from a server whose clock is ahead of ours

    def passes(self, entry: Entry) -> bool:
        carried = self.types is None or entry.type in self.types
        wanted = (
            self.names if entry.type == "metric" else self.levels if entry.type == "alert" else None
        )
        return carried and entry.id > self.after and (not wanted or entry.topic in wanted)


EVERYTHING = Filter()
REASONS = {  # how a stream, or a connection that never got one, came to its end
    "closed": "the client left",
    "slow": "its queue was full",
    "stalled": "it took nothing for SEND_TIMEOUT_SECONDS",
    "refused": "there was no place",
    "lapsed": "ticks were skipped",
    "failed": "a hook raised",
    "shutdown": "the server ended",
}


class Subscription(queue.Queue["bytes | None"]):
    """One client's queue of frames, and how its stream came to an end.

    Any thread may call `offer` and `end`, which never block; `get` and `frames` belong to the client's thread, and block it.
    With writers that never wait and a single reader, one lock to sleep on does for the three conditions of the base class,
    which would cost a fifth of the CPU for each frame; so of its methods get() alone, without arguments, and qsize() work."""

    def __init__(self, hang_up: Callable[[], None], wanted: Filter = EVERYTHING) -> None:
        """`hang_up` cuts the client's connection, from any thread, without blocking."""
        self.maxsize, self.mutex, self.queue = QUEUE_FRAMES, threading.Lock(), deque()
        self._bell = (
            threading.Lock()
        )  # released by a writer behind its append, so that who wakes finds the frame; one
        self._bell.acquire()  # ... that was released for a frame already taken costs one more look
        self._hang_up, self.wanted = hang_up, wanted
        self.opening: Iterator[bytes] = iter(())  # the frames that come before the live ones
        self.reason = ""  # why it ended, once it has
        self.events = 0  # written so far

    def offer(self, frame: bytes | None) -> None:
        """Queues a frame. A client whose queue is full is too slow: it is cut, and may resume by its last event ID."""
        with self.mutex:
            if has_room := len(self.queue) < self.maxsize:
                self.queue.append(frame)
                if self._bell.locked():
                    self._bell.release()
        if not has_room:
            self.reason = self.reason or "slow"
            self._hang_up()

    def end(self, reason: str) -> None:
        """Ends the stream behind the frames that are queued; cuts it when the queue is full. The first reason stays."""
        if not self.reason:
            self.reason = reason
            self.offer(None)

    def get(self) -> bytes | None:  # type: ignore[override]
        """The next frame, or None for the end. After HEARTBEAT_SECONDS of silence a comment: so dead peers are found."""
        while not self.queue:
            if not self._bell.acquire(timeout=HEARTBEAT_SECONDS):
                return b":\n\n"
        frame: bytes | None = self.queue.popleft()
        return frame

    def frames(self) -> Iterator[bytes]:
        """What to write, in order, until the end."""
        return chain(self.opening, iter(self.get, None))


# ----------------------------------------------------------------- Broadcaster: event IDs, history, fan-out, resume ----


class Broadcaster:
    """Gives every event its ID, holds the history, and hands every event to all whose filter it passes.

    `interval` and `history` are in seconds. Any thread may call any method; none waits for a client, only for the lock, which
    publishing to many holds for some milliseconds: it rests in between to let them run."""

    def __init__(
        self, interval: float = INTERVAL_SECONDS, history: float = HISTORY_SECONDS
    ) -> None:
        if not (0.001 <= interval < math.inf and 0 <= history < math.inf):
            raise ValueError(
                f"an interval is at least 0.001 s and a history 0 s, not {interval!r} and {history!r}"
            )
        self.interval_ms, self.history_ms = round(interval * 1000), round(history * 1000)
        self._started_at = time.monotonic()
        self.instance = os.urandom(4).hex()  # of this start of the server
        self.panels = b""
        # Guards everything below. Publishing offers while it holds this, which is safe because offer() never blocks.
        self._lock = threading.RLock()
        self.metric_names: dict[
            str, None
        ] = {}  # in order, those published so far: what a filter may ask for
        self.events_published = 0
        self._history: list[tuple[Entry, ...]] = []  # batches, ordered by ID
        self._last: EventID = (0, 0)  # the newest ID; (tick, 0) after a tick without events
        self._gone: EventID = (0, 0)  # what came up to this ID is no longer held, or never was
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    def advance(
        self, ticks: Iterable[tuple[int, Iterable[Event]]], live: bool = True, gap: bool = False
    ) -> None:
        """Publishes the events of one or more ticks, as one frame. If not `live`, only remembers them, as history.

        After a `gap` it begins anew: every stream ends, and each client comes back by its ID and is told that it expired."""
        with self._lock:
            if gap:
                self._history.clear()
                self._last = (0, 0)
                for subscription in self._subscriptions:
                    subscription.end("lapsed")
            entries = [entry for tick, events in ticks for entry in self._remember(tick, 1, events)]
            if live:
                self._fan_out(entries, self._status(self._last[0]))

    def publish(self, event: Event) -> None:
        """Publishes one event at once, between two ticks. Raises TypeError for anything else, RuntimeError when not serving."""
        if not isinstance(event, Event):
            raise TypeError(
                f"publish() takes an event, as metric() and alert() make it, not {event!r}"
            )
        with self._lock:
            if self._closed or not self._last[0]:
                raise RuntimeError(
                    f"the server has {'ended' if self._closed else 'not begun'}: nobody is there to hear of it"
                )
            tick, number = self._last
            # Counted by the microseconds since the tick, so that a restart in between does not give a number again.
            elapsed = int(1000 * min(time.time() * 1000 - tick, self.interval_ms))
            self._fan_out(self._remember(tick, max(number + 1, elapsed), [event]))

    def close(self) -> None:
        """Ends every stream, and each that is yet to come."""
        with self._lock:
            self._closed = True
            for subscription in self._subscriptions:
                subscription.end("shutdown")

    @contextmanager
    def subscribe(
        self,
        wanted: Filter = EVERYTHING,
        last_event_id: str = "",
        history: float = NEWEST_SECONDS,
        hang_up: Callable[[], None] = lambda: None,
    ) -> Iterator[Subscription]:
        """A subscription for the length of a `with` block.

        It begins with the reconnection time, and on a stream of all with a `status`. Then come exactly the events after the
        last event ID; without one, those of the last `history` seconds, if nothing else is said of the newest tick. An ID that
        is older than what is held, or that no server can have sent, is answered by a `reset` event and all that is held."""
        with self._lock:
            reset, after = self._position(last_event_id, history)
            missed = iter(
                self._history[bisect_right(self._history, after, key=lambda batch: batch[-1].id) :]
            )
            audible = wanted._replace(after=after)
            subscription = Subscription(hang_up, audible if after > self._last else wanted)
            self._subscriptions.add(subscription)
            opening = f"retry: {random.randint(*RETRY_MS)}\n\n".encode()
            if reset:
                opening += Event("reset", {"reason": reset}).encode(timestamp(time.time() * 1000))
            if wanted.types is None:
                opening += self._status(time.time() * 1000) + self.panels
            if self._closed:
                subscription.end("shutdown")
        # History is shared, not copied: a handful of events is joined when it is about to be written, and then let go.
        passing = (entry.wire for batch in missed for entry in batch if audible.passes(entry))
        subscription.opening = chain(
            [opening], iter(lambda: b"".join(islice(passing, REPLAY_EVENTS)), b"")
        )
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.remove(subscription)

    def snapshot(self) -> dict[str, Any]:
        """What is true of it now: uptime in seconds, open event streams, events published, and the newest ID."""
        with self._lock:
            return {
                "uptime_seconds": round(time.monotonic() - self._started_at, 1),
                "connections": len(self._subscriptions),
                "events_published": self.events_published,
                "last_event_id": "-".join(map(str, self._history[-1][-1].id))
                if self._history
                else "",
            }

    # What follows is called with the lock held.

    def _remember(self, tick: int, number: int, events: Iterable[Event]) -> tuple[Entry, ...]:
        """The entries of a new batch, numbered from `number`; forgets what is older than the history."""
        if not self._last[0]:
            self._gone = (tick, 0)
        moment = timestamp(tick)
        batch = tuple(
            Entry((tick, n), event.type, event.topic, event.encode(moment, f"{tick}-{n}"))
            for n, event in enumerate(events, number)
        )
        self._last = batch[-1].id if batch else (tick, 0)
        if batch:
            self._history.append(batch)
            self.metric_names |= dict.fromkeys(
                entry.topic for entry in batch if entry.type == "metric"
            )
        # Even without a history the newest tick is held: it is what a new client sees first.
        if expired := bisect_right(
            self._history, tick - max(self.history_ms, 1), key=lambda batch: batch[0].id[0]
        ):
            self._gone = self._history[expired - 1][-1].id
            del self._history[:expired]
        return batch

    def _fan_out(self, entries: Sequence[Entry], status: bytes = b"") -> None:
        """Offers each subscription the frame of its filter, made once; who has a filter that raises misses it."""
        self.events_published += len(entries)
        frames: dict[Filter, bytes] = {}
        for number, subscription in enumerate(self._subscriptions, 1):
            if (wanted := subscription.wanted) not in frames:
                frames[wanted] = status if wanted.types is None else b""
                try:
                    frames[wanted] = (
                        b"".join([entry.wire for entry in entries if wanted.passes(entry)])
                        + frames[wanted]
                    )
                except Exception:
                    logger.exception(
                        "%r raised: its subscribers miss %d events", wanted, len(entries)
                    )
            if frame := frames[wanted]:
                subscription.offer(frame)
            if number % CLIENTS_AT_ONCE == 0:
                time.sleep(REST_SECONDS)

    def _position(self, last_event_id: str, history: float) -> tuple[str, EventID]:
        """Why a client must start over ("" if it need not), and the ID after which its events begin."""
        if not last_event_id:
            return "", min(self._last, (self._last[0] - round(history * 1000), sys.maxsize))
        found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", last_event_id)
        after = (int(found[1]), int(found[2])) if found else None
        if (
            after is None
            or after[0] > max(time.time() * 1000, self._last[0]) + FUTURE_SECONDS * 1000
        ):
            return "unknown", self._gone
        return ("expired", self._gone) if after < self._gone else ("", after)

    def _status(self, milliseconds: float) -> bytes:
        now = self.snapshot()
        return Event(
            "status",
            {
                "uptime_seconds": now["uptime_seconds"],
                "connections": now["connections"],
                "interval_seconds": self.interval_ms / 1000,
                "instance": self.instance,
            },
        ).encode(timestamp(milliseconds))


# ------------------------------------------------------------------------------------------ Generator thread: time ----


class Generator:
    """Publishes the events of all sources at every tick, in its own thread, for the length of a `with` block.

    Entering fills the history from the replayable sources, and starts the thread. A source that raises is logged, and its
    events of that tick are left out. Ticks that are late, after a pause of the process or a nap of the laptop, are made up
    for; after a pause too long for that every client is told to start over."""

    def __init__(self, broadcaster: Broadcaster, sources: Sequence[Source]) -> None:
        self.replayable = [source for source in sources if getattr(source, "replayable", False)]
        self.others = [source for source in sources if not getattr(source, "replayable", False)]
        self._broadcaster = broadcaster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._epoch = 0.0  # when, in Unix seconds, the steady clock was at zero
        self._next = 0  # the tick to be published next

    def __enter__(self) -> Generator:
        interval = self._broadcaster.interval_ms
        self._next = self._steady_ms() // interval * interval
        if self.replayable:  # or nobody can tell of the past; one tick more than is held shows which ID is the last one gone
            self._next -= (self._broadcaster.history_ms // interval + 1) * interval
        self._publish_due(live=False)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(HANG_UP_SECONDS)

    def _run(self) -> None:
        # A second at most: the wall clock may be set forward meanwhile.
        while not self._stop.wait(max(0, min(1000, self._next - self._steady_ms())) / 1000):
            try:
                self._publish_due()
            except Exception:
                logger.exception("a tick could not be published")

    def _steady_ms(self) -> int:
        """The time of day, but never going back: when the clock is set back, time runs on from where it was."""
        self._epoch = max(self._epoch, time.time() - time.monotonic())
        return int((self._epoch + time.monotonic()) * 1000)

    def _publish_due(self, live: bool = True) -> None:
        """Publishes all ticks up to now; but for the newest, from those sources alone that can tell of the past."""
        now, interval = self._steady_ms(), self._broadcaster.interval_ms
        oldest = now - max(
            self._broadcaster.history_ms + 2 * interval, round(CATCH_UP_SECONDS * 1000)
        )
        if gap := self._next < oldest:
            self._next = oldest // interval * interval + interval
        if due := range(self._next, now + 1, interval):
            self._next = due[-1] + interval
            # The replayable first: so their events have the same numbers where history is filled from them alone.
            everyone = [*self.replayable, *self.others]
            ticks = [
                (
                    tick,
                    self._events(tick, everyone if live and tick == due[-1] else self.replayable),
                )
                for tick in due
            ]
            self._broadcaster.advance(ticks, live, gap)

    def _events(self, tick: int, sources: Iterable[Source]) -> list[Event]:
        events: list[Event] = []
        for source in sources:
            try:
                found = list(source.events_at(tick))
                if strangers := [event for event in found if not isinstance(event, Event)]:
                    raise TypeError(
                        f"a source gives events, as metric() and alert() make them, not {strangers[0]!r}"
                    )
                events += found
            except (
                Exception,
                SystemExit,
            ):  # a source does not decide about the server's life; a signal does
                logger.exception("%r raised at tick %d: its events are left out", source, tick)
        return events


# ------------------------------------------------------------------------------------------- Handler: one request ----

STREAMS: dict[str, frozenset[str] | None] = {
    "/api/events/metrics": frozenset({"metric"}),
    "/api/events/alerts": frozenset({"alert"}),
    "/api/events/all": None,
}
ORIGIN = (
    r"\Ahttps?://([^/?#\[\]]|\[[^/?#\[\]]+\])+/?"  # before the path of a target in absolute form
)
ROUTES = ("/", "/api/status", *STREAMS)
METHODS = "GET, HEAD, OPTIONS"
PREFLIGHT = {
    "Access-Control-Allow-Methods": METHODS,
    "Access-Control-Allow-Headers": "Last-Event-ID, Cache-Control",
}
PUBLIC = {"Access-Control-Allow-Origin": "*"}  # a page of any origin may read the data
JSON = {"Content-Type": "application/json"} | PUBLIC
EVENT_STREAM = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


def hang_up(connection: socket.socket) -> None:
    """Cuts a connection: whichever thread reads or writes it comes back at once, and closes it. Any thread."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def load_page(path: Path) -> tuple[bytes, dict[str, str]]:
    """The page and its headers, which allow each script and style in it by its hash, and nothing else. Raises OSError."""
    body = path.read_bytes()
    policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    for tag in ("script", "style"):
        policy += f"; {tag}-src"
        for text in re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>".encode(), body, re.DOTALL):
            policy += f" 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
    return body, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }


class Problem(Exception):
    """Why a request is answered by an error: its status, one sentence, and perhaps header fields."""


class Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection, in that connection's thread. It has no state of its own."""

    server: DashboardServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of a request line that names none
    requestline, command, request_version = (
        "",
        "",
        "HTTP/1.1",
    )  # for an answer before the request is read

    def handle(self) -> None:
        """Reads the request and answers it. Every error is answered here, also that the house is full."""
        try:
            if self.connection in self.server.refused:
                raise Problem(
                    503,
                    "There is no place for another connection; try again later.",
                    {"Retry-After": str(RETRY_AFTER_SECONDS)},
                )
            self.raw_requestline = self.rfile.readline(MAX_LINE_BYTES + 1)
            if len(self.raw_requestline) > MAX_LINE_BYTES:
                raise Problem(414, "The target of the request is too long.")
            if self.parse_request():
                self.answer()
        except Problem as problem:
            status, sentence, *headers = problem.args
            self.respond(
                status, JSON | dict(*headers), f"{to_json({'error': sentence})}\n".encode()
            )

    def answer(self) -> None:
        """The one way of every request that could be parsed, whatever its method. Raises Problem."""
        self.server.deadlines[self.connection] = time.monotonic() + RESPONSE_SECONDS
        path, query = self.target()
        if path not in ROUTES:
            raise Problem(404, f"There is nothing here; there is {', '.join(ROUTES)}.")
        if self.command not in METHODS.split(", "):
            raise Problem(405, f"The methods here are {METHODS}.", {"Allow": METHODS})
        if self.command == "OPTIONS":
            self.respond(204, {"Allow": METHODS} | PREFLIGHT | ({} if path == "/" else PUBLIC))
        elif path == "/":
            body, headers = self.server.page
            fresh = {headers["ETag"], "*"} & set(
                re.findall(r'"[^"]*"|\*', self.headers.get("If-None-Match", ""))
            )
            self.respond(304 if fresh else 200, headers, None if fresh else body)
        elif path == "/api/status":
            self.respond(
                200,
                JSON | {"Cache-Control": "no-store"},
                f"{to_json(self.server.status())}\n".encode(),
            )
        else:
            self.send_stream(path, query)

    def target(self) -> tuple[str, dict[str, list[str]]]:
        """The path and the query, of a target in origin or absolute form (RFC 9112, 3.2). Raises Problem."""
        fields = self.headers.items()
        if self.headers.defects or any(
            name != name.strip() or re.search(r"[\0\r\n]", value) for name, value in fields
        ):
            raise Problem(400, "A header field is one line: a name, a colon, a value.")
        if self.request_version != "HTTP/1.0" and len(self.headers.get_all("Host", [])) != 1:
            raise Problem(400, "A request has exactly one Host header field.")
        target = "/" if self.path == "*" and self.command == "OPTIONS" else self.path
        path, _, query = re.sub(ORIGIN, "/", target, count=1, flags=re.IGNORECASE).partition("?")
        if not path.startswith("/"):
            raise Problem(400, "The target of a request is a path of this server.")
        return unquote(path), parse_qs(query, keep_blank_values=True)

    def send_stream(self, path: str, query: Mapping[str, list[str]]) -> None:
        """Streams events until the client leaves or the server ends it. Raises Problem, but sends nothing then."""
        names = self.server.broadcaster.metric_names if self.server.names_are_known else None
        wanted = Filter(
            STREAMS[path], self.choice(query, "name", names), self.choice(query, "level", LEVELS)
        )
        history = query.get("history", [""])[-1]
        if history and not re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", history):
            raise Problem(400, "The parameter history is a number of seconds.")
        last_event_id = (
            self.headers.get("Last-Event-ID", "").strip(" \t") or query.get("lastEventId", [""])[-1]
        )
        if re.search(r"[\0-\x1f\x7f]", last_event_id):
            raise Problem(400, "An event ID has no control characters.")
        self.respond(200, EVENT_STREAM | PUBLIC)
        if self.command == "HEAD":
            return
        # A stream may last for days; what only its request needed goes now: some KiB a client.
        self.rfile.close()
        self.rfile = self.wfile  # for finish(), which closes it again
        del self.headers, self.requestline, self.raw_requestline, self.path
        subscribing = self.server.broadcaster.subscribe(
            wanted,
            last_event_id,
            float(history or NEWEST_SECONDS),
            partial(hang_up, self.connection),
        )
        with (
            subscribing as subscription,
            self.server.watching(self.connection, self.client_address[0], path, subscription),
        ):
            try:
                for frame in subscription.frames():
                    self.connection.sendall(frame)
                    subscription.events += frame.count(b"\ndata: ")
            except OSError as problem:
                subscription.end(
                    "stalled" if isinstance(problem, (BlockingIOError, TimeoutError)) else "closed"
                )

    def choice(
        self, query: Mapping[str, list[str]], key: str, allowed: Iterable[str] | None
    ) -> frozenset[str]:
        """The values of a filter, given several times or with commas. Raises Problem for one that is not allowed."""
        values = frozenset(
            value for text in query.get(key, ()) for value in text.split(",") if value
        )
        if allowed is not None and not values <= set(allowed):
            raise Problem(400, f"The parameter {key} is one or more of {', '.join(allowed)}.")
        return values

    def respond(self, status: int, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """A whole answer, or the head of a stream. HEAD gets the same headers and no body (RFC 9110, 9.3.2)."""
        self.request_version = max(
            self.request_version, "HTTP/1.0"
        )  # or the answer would have no status line
        self.send_response(status)
        for name, value in {
            **headers,
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class calls for a request that it cannot parse. Its message quotes the client; ours does not."""
        raise Problem(code, f"{self.responses[code][0]}.")

    def handle_expect_100(self) -> bool:
        return True  # no body is wanted: the final answer comes at once

    def version_string(self) -> str:
        return "sse-dashboard"

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(
            "%s %s", self.client_address[0], (format % args).encode("unicode_escape").decode()
        )


# ---------------------------------------------------------------------------------- Server: sockets and lifetimes ----

# Set on the listening socket, and inherited by those it accepts. An option that the system lacks is left out.
SOCKET_OPTIONS = (
    ("IPPROTO_TCP", "TCP_NODELAY", 1),  # a frame is one write: there is nothing to wait for
    (
        "IPPROTO_TCP",
        "TCP_USER_TIMEOUT",
        SEND_TIMEOUT_SECONDS * 1000,
    ),  # for a peer that vanished without a word
    (
        "SOL_SOCKET",
        "SO_SNDTIMEO",
        struct.pack("@ll", SEND_TIMEOUT_SECONDS, 0),
    ),  # settimeout() would poll before a write
    ("SOL_SOCKET", "SO_SNDBUF", SEND_BUFFER_BYTES),
    (
        "IPPROTO_IPV6",
        "IPV6_V6ONLY",
        0,
    ),  # `::` is for IPv4 too; an IPv4 socket refuses it, and needs it not
)
sink = mmap.mmap(
    -1, DRAIN_BYTES
)  # for all threads: nobody reads it, and what is not written takes no memory


def discard_input(connection: socket.socket) -> bool:
    """Throws away what was received, or waits for something to come; False when the peer has closed."""
    try:
        return connection.recv_into(sink) > 0
    except OSError:
        return False


# What asks a program to end: Ctrl-C, `kill`, and on Windows Ctrl-Break, the one that a program can send.
ENDING_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
]


def interrupt(signal_number: int, frame: object) -> None:
    """Unwinds the main thread at the first of the signals. A second one ends the process at once."""
    for each in ENDING_SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt


def take_signals() -> dict[int, Any]:
    """Lets every one of ENDING_SIGNALS do the same, and returns the handlers that were there.

    A handler that the program has set itself stays. Python lets only the main thread set one."""
    replaced = {}
    if threading.current_thread() is threading.main_thread():
        for each in ENDING_SIGNALS:
            before = signal.getsignal(each)
            if not callable(before) or before is signal.default_int_handler:
                replaced[int(each)] = signal.signal(each, interrupt)
    return replaced


class DashboardServer(ThreadingHTTPServer):
    """The dashboard. Entering its `with` block serves; leaving it ends every stream in order, within two seconds.

        with DashboardServer(sources=[Simulation(), MySource()]) as server:
            server.publish(alert("info", "Hello"))
            server.wait()

    The constructor takes the port; it raises OSError when it cannot, or when index.html is missing, and ValueError for an
    interval or a history that cannot be. Override `stream_opened` and `stream_closed` to see clients come and go."""

    request_queue_size = BACKLOG

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        sources: Iterable[Source] | None = None,
        interval: float = INTERVAL_SECONDS,
        history: float = HISTORY_SECONDS,
        max_clients: int = MAX_CLIENTS,
        title: str = "SSE dashboard",
    ) -> None:
        """`interval` and `history` in seconds. Without `sources` it shows the simulation; port 0 is any free one."""
        self.page = load_page(Path(__file__).with_name("index.html"))
        self.broadcaster = Broadcaster(interval, history)
        sources = [Simulation(interval=interval)] if sources is None else list(sources)
        if any(
            isinstance(one, Simulation) and one.interval_ms != self.broadcaster.interval_ms
            for one in sources
        ):
            raise ValueError(
                f"the server's interval is {interval} s, its simulation's is another: its alerts would be wrong"
            )
        panels = [panel for source in sources for panel in getattr(source, "panels", ())]
        self.broadcaster.panels = Event(
            "panels",
            {
                "title": title,
                "history_seconds": history,
                "panels": [panel.as_fields() for panel in panels],
                "types": [],
            },
        ).encode(timestamp(time.time() * 1000))
        self.generator = Generator(self.broadcaster, sources)
        # Of a source that is not replayable nobody knows the names before it speaks; a 400 would stop a browser for good.
        self.names_are_known = bool(self.generator.replayable) and not self.generator.others
        self.max_clients = max_clients
        # Guards the books below, but for a new deadline of a connection that is in them; notified when one is done.
        self._books = threading.Condition()
        self.deadlines: dict[
            socket.socket, float
        ] = {}  # of every open connection: when it must be done
        self.refused: dict[
            socket.socket, None
        ] = {}  # those among them that have no place, oldest first
        self._ended = dict.fromkeys(REASONS, 0)
        self._watch_at = 0.0
        self._starved = False
        self._down = threading.Event()
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self.address_family, _, _, _, address = found[0]
        super().__init__((str(address[0]), port), Handler)

    def server_bind(self) -> None:
        """Takes the port, without the base class's look-up of the host's full name, which can last half a minute."""
        for level, option, value in SOCKET_OPTIONS:
            with suppress(AttributeError, OSError):
                self.socket.setsockopt(getattr(socket, level), getattr(socket, option), value)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.server_name, self.server_name)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"  # for a browser on this machine

    def __enter__(self) -> DashboardServer:
        with suppress(ImportError, ValueError, OSError):
            import resource  # not on Windows

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(
                resource.RLIMIT_NOFILE,
                (max(soft, min(self.max_clients + SPARE_DESCRIPTORS, hard)), hard),
            )
        self._watched = (
            selectors.DefaultSelector()
        )  # the sockets of streams: readable when the peer closes
        self._signals = take_signals()
        self.generator.__enter__()
        threading.Thread(target=self._serve, name="serve", daemon=True).start()
        return self

    def _serve(self) -> None:
        # A thread of this policy does not push aside the thread that wakes it, and the clients' threads inherit it. So
        # the generator fills many queues in one go, instead of losing the processor at each: up to a third less CPU.
        with suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self.serve_forever(WATCH_SECONDS)

    def wait(self) -> None:
        """Blocks until the server has ended, or a signal unwinds the `with` block."""
        # Python runs a signal's handler between two of its own steps: a wait without end could begin just after a signal.
        while not self._down.wait(WATCH_SECONDS):
            pass

    def publish(self, event: Event) -> None:
        """Publishes one event at once, from any thread. Raises TypeError for anything else, RuntimeError when not serving."""
        self.broadcaster.publish(event)

    def __exit__(self, problem: type[BaseException] | None = None, *_: object) -> Any:
        """The one way down: no more ticks, no more clients, every stream to its end, and then
        whoever is left is cut. A KeyboardInterrupt has done its work then: the program goes on
        behind the `with` block."""
        self.generator.__exit__(None, None, None)
        self.shutdown()
        self.server_close()
        self.broadcaster.close()
        self._down.set()
        with self._books:
            self._books.wait_for(
                lambda: not self.broadcaster.snapshot()["connections"], DRAIN_SECONDS
            )
            for connection in self.deadlines:
                hang_up(connection)
            self._books.wait_for(lambda: not self.deadlines, HANG_UP_SECONDS)
            self._watched.close()
        for each, handler in self._signals.items():
            signal.signal(each, handler)
        return problem is KeyboardInterrupt

    # The life of a connection. In the serve thread: get_request, process_request. In its own, process_request_thread: a
    # Handler reads the request and answers it, or streams within watching(); then close_request.

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. Without a descriptor for it, waits a little: serve_forever() would try again at once."""
        try:
            accepted = super().get_request()
            self._starved = False
            return accepted
        except OSError as problem:
            if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                if not self._starved:
                    logger.error("cannot accept connections for now: %s", problem.strerror)
                self._starved = True
                self._down.wait(ACCEPT_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the connection. When the house is full, all it does is say so; nobody is evicted."""
        with self._books:
            if len(self.deadlines) - len(self.refused) >= self.max_clients:
                self._ended["refused"] += 1
                self.refused[request] = None
                for oldest in list(self.refused)[:-MAX_REFUSED]:
                    hang_up(oldest)
            self.deadlines[request] = time.monotonic() + REQUEST_SECONDS
        try:
            # Not a threading.Thread: its object costs memory for each client, and its start() waits for the new thread.
            _thread.start_new_thread(self.process_request_thread, (request, client_address))
        except (
            RuntimeError
        ):  # there is no thread for it: close_request(), called next in this one, must not wait
            hang_up(request)
            raise

    @contextmanager
    def watching(
        self, connection: socket.socket, address: str, path: str, subscription: Subscription
    ) -> Iterator[None]:
        """Ends the stream that is written in the `with` block when its client leaves, and tells how it ended."""
        started_at = time.monotonic()
        with self._books, suppress(ValueError):  # closed: this thread came late to the end
            self.deadlines[connection] = math.inf
            self._watched.register(connection, selectors.EVENT_READ, subscription)
        try:
            self.stream_opened(address, path)
            yield
        except BaseException as problem:
            subscription.end("failed")
            raise RuntimeError(f"a stream of {address} failed") from problem
        finally:
            with self._books, suppress(KeyError):  # closed, too
                self._ended[subscription.reason] += 1
                self._watched.unregister(connection)
            self.stream_closed(
                address,
                path,
                subscription.reason,
                time.monotonic() - started_at,
                subscription.events,
            )

    def close_request(self, request: Any) -> None:
        """Waits for the client to close as well (RFC 9112, 9.6): with unread input, a close would take the response with it."""
        self.deadlines[request] = time.monotonic() + LINGER_SECONDS
        while not self._down.is_set() and discard_input(request):
            pass
        request.close()
        with self._books:
            self.deadlines.pop(request, None)
            self.refused.pop(request, None)
            self._books.notify_all()

    def service_actions(self) -> None:
        """Looks after all streams and sockets. Called by serve_forever() at least every WATCH_SECONDS; never blocks."""
        now = time.monotonic()
        if now < self._watch_at:
            return
        self._watch_at = now + WATCH_SECONDS
        with self._books:
            for key, _ in self._watched.select(0):
                connection: Any = key.fileobj
                if not discard_input(connection):
                    key.data.end("closed")
                    hang_up(connection)
            for connection, deadline in self.deadlines.items():
                if deadline < now:
                    hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A departure is no error; anything else is logged with its traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("a request of %s failed", client_address[0])

    def stream_opened(self, address: str, path: str) -> None:
        """A hook: a client's stream begins. Called in the client's thread."""

    def stream_closed(
        self, address: str, path: str, reason: str, seconds: float, events: int
    ) -> None:
        """A hook: a client's stream has ended, for one of REASONS. Called in the client's thread."""
        logger.debug(
            "%s %s ended after %.1f s and %d events: %s", address, path, seconds, events, reason
        )

    def status(self) -> dict[str, Any]:
        """The snapshot at /api/status."""
        return {"status": "ok", **self.broadcaster.snapshot(), "ended": dict(self._ended)}


# --------------------------------------------------------------------- Simulation: a machine as a function of time ----
# Every curve is a function of the seed and the time, and of nothing else.


@lru_cache(maxsize=8192)
def chance(*key: object) -> float:
    """A number in [0, 1), fixed by its key: the same in every process, on every machine, in every Python."""
    return (
        int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=6).digest(), "big") / 2**48
    )


def wave(seed: int, cause: str, period: float, at: float) -> float:
    """Wanders between 0 and 1: takes a new direction every `period` seconds."""
    slot, phase = divmod(at / period, 1)
    here, there = chance(seed, cause, period, slot), chance(seed, cause, period, slot + 1)
    return here + (there - here) * phase * phase * (3 - 2 * phase)


class Reading(NamedTuple):
    """A metric of the simulated machine: a base and its parts, within `noise` of their sum, and how it is told."""

    label: str  # inside a sentence
    unit: str
    digits: int  # after the decimal point
    noise: float
    lag: float  # seconds behind the causes of its parts
    base: float
    parts: tuple[tuple[float, int, str, float], ...]  # height, power, cause, period


USAGE = {"min": 0, "max": 100, "thresholds": {"warning": 85, "error": 95}, "decimals": 1}
PANELS = (
    Panel("CPU", {"cpu_usage": ""}, gauge="arc", **USAGE),
    Panel("Memory", {"memory_usage": ""}, gauge="bar", **USAGE),
    Panel("Network", {"network_in": "in", "network_out": "out"}),
    Panel("Disk", {"disk_usage": ""}, gauge="bar", **USAGE),
    Panel("Temperature", {"temperature": ""}, thresholds={"warning": 75, "error": 85}, decimals=1),
    Panel("Load", {"load_average": ""}, thresholds={"warning": 4, "error": 6}, decimals=2),
)
THRESHOLDS = {name: tuple(panel.thresholds.values()) for panel in PANELS for name in panel.metrics}

# fmt: off
READINGS = {
    "cpu_usage": Reading("CPU usage", "%", 1, 0.08, 0, 4, (
        (48, 1, "work", 170), (12, 1, "work", 31), (60, 9, "jobs", 37))),
    "memory_usage": Reading("memory usage", "%", 1, 0.004, 2, 34, (
        (54, 1, "memory", 240), (10, 4, "jobs", 37))),
    "disk_usage": Reading("disk usage", "%", 1, 0, 0, 48, (
        (44, 1, "disk", 900), (1, 1, "disk", 60))),
    "network_in": Reading("incoming traffic", "B/s", 0, 0.3, 0, 30e3, (
        (15e4, 1, "in", 50), (9e6, 12, "in", 20))),
    "network_out": Reading("outgoing traffic", "B/s", 0, 0.3, 0, 15e3, (
        (9e4, 1, "out", 65), (5e6, 14, "out", 23))),
    "temperature": Reading("temperature", "°C", 1, 0.006, 9, 36, (
        (24, 1, "work", 170), (6, 1, "room", 400), (28, 4, "jobs", 37))),
    "load_average": Reading("load average", "", 2, 0.03, 4, 0.2, (
        (2.6, 1, "work", 170), (3.6, 5, "jobs", 37))),
}
# fmt: on

# One of each level falls into every stretch of so many seconds: some two a minute, every level within ten minutes.
SYSTEM_EVENTS = {
    "info": (
        80,
        (
            "Service restarted: web",
            "Configuration reloaded",
            "Log files rotated",
            "Scheduled task started: report",
        ),
    ),
    "success": (
        140,
        ("Backup finished", "Deployment completed", "Health check passed", "Certificate renewed"),
    ),
    "warning": (
        200,
        (
            "Slow response from the database",
            "Certificate expires in 14 days",
            "Outgoing mail is queueing up",
        ),
    ),
    "error": (
        290,
        (
            "Health check failed: cache",
            "Backup target not reachable",
            "Worker process crashed and restarted",
        ),
    ),
}


@lru_cache(maxsize=8192)
def value_at(seed: int, name: str, tick: int) -> float:
    """The reading of a metric: finite, rounded, not below zero, and a percentage not above 100."""
    kind = READINGS[name]
    at = tick / 1000 - kind.lag
    value = kind.base + sum(
        height * wave(seed, cause, period, at) ** power
        for height, power, cause, period in kind.parts
    )
    value *= 1 + kind.noise * (2 * chance(seed, name, tick) - 1)
    return round(min(value, 100.0) if kind.unit == "%" else value, kind.digits or None)


@lru_cache(maxsize=8192)
def severity(seed: int, name: str, tick: int, step: int) -> int:
    """How many of its thresholds a metric, read every `step` milliseconds, has crossed now or within the last CALM_MS."""
    worst = max(
        value_at(seed, name, moment) for moment in range(tick, tick - CALM_MS - step, -step)
    )
    return sum(worst >= threshold for threshold in THRESHOLDS[name])


class Simulation:
    """A machine whose events at a tick depend on the seed, the interval and the tick, on nothing that was before. So a
    restarted server continues the same curves under the same IDs, and any tick can be asked for at any time."""

    replayable = True
    panels = PANELS

    def __init__(self, seed: int = 0, interval: float = INTERVAL_SECONDS) -> None:
        """`interval` in seconds: the server's own, for an alert compares a tick with the one before."""
        self.seed, self.interval_ms = seed, max(1, round(interval * 1000))
        self.check_ms = self.interval_ms * math.ceil(CHECK_MS / self.interval_ms)

    def events_at(self, tick: int) -> list[Event]:
        """A metric event for each of READINGS, in their order, then the alerts of the tick."""
        metrics = [
            metric(name, value_at(self.seed, name, tick), kind.unit)
            for name, kind in READINGS.items()
        ]
        return [*metrics, *self._threshold_alerts(tick), *self._system_alerts(tick)]

    def _threshold_alerts(self, tick: int) -> Iterator[Event]:
        for name, kind in READINGS.items():
            if tick % self.check_ms or not THRESHOLDS[name]:
                continue
            before, now = (
                severity(self.seed, name, moment, self.check_ms)
                for moment in (tick - self.check_ms, tick)
            )
            reading = f"{value_at(self.seed, name, tick):.{kind.digits}f} {kind.unit}".rstrip()
            if now > before:
                level, word = (("warning", "High"), ("error", "Critical"))[now - 1]
                yield alert(level, f"{word} {kind.label} detected: {reading}", name)
            elif before and not now:
                yield alert(
                    "success",
                    f"{kind.label[0].upper()}{kind.label[1:]} back to normal: {reading}",
                    name,
                )

    def _system_alerts(self, tick: int) -> Iterator[Event]:
        before = tick - self.interval_ms
        for level, (seconds, messages) in SYSTEM_EVENTS.items():
            for slot in range(before // (seconds * 1000), tick // (seconds * 1000) + 1):
                if before < int((slot + chance(self.seed, level, slot)) * seconds * 1000) <= tick:
                    yield alert(
                        level,
                        messages[int(chance(self.seed, level, "which", slot) * len(messages))],
                    )


# --------------------------------------------------------------------------------------------------- Command line ----


def number(kind: Callable[[str], float], low: float, high: float, text: str) -> float:
    """What argparse calls for the text of an option: a number within a range."""
    with suppress(ValueError):
        if low <= (value := kind(text)) <= high:
            return value
    raise argparse.ArgumentTypeError(
        f"{text!r} is not {'an integer' if kind is int else 'a number'} from {low} to {high}"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A live dashboard over Server-Sent Events.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address or name to listen on, IPv4 or IPv6")
    add("--port", type=partial(number, int, 0, 65535), default=8000, help="0 picks a free one")
    add(
        "--interval",
        type=partial(number, float, 0.05, 60),
        default=INTERVAL_SECONDS,
        help="seconds between ticks, 0.05 to 60",
    )
    add("--seed", type=int, default=0, help="of the simulation: the same seed, the same curves")
    add(
        "--history",
        type=partial(number, float, 0, 3600),
        default=HISTORY_SECONDS,
        help="seconds of events held, 0 to 3600",
    )
    add(
        "--max-clients",
        type=partial(number, int, 1, 100_000),
        default=MAX_CLIENTS,
        help="open connections of any kind",
    )
    add("--verbose", action="store_true", help="log every request and every stream's end")
    options = parser.parse_args(arguments)
    longest = MAX_HISTORY_TICKS * round(options.interval, 3)
    if options.history > longest:
        parser.error(
            f"argument --history: at most {longest:g} seconds ({MAX_HISTORY_TICKS} ticks) at this interval"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    logging.logThreads = (
        False  # the clients' threads have no name, and asking for one would leave an object behind
    )
    take_signals()  # already now: to fill the history takes some seconds
    try:
        with DashboardServer(
            options.host,
            options.port,
            sources=[Simulation(options.seed, options.interval)],
            interval=options.interval,
            history=options.history,
            max_clients=options.max_clients,
        ) as server:
            with suppress(OSError):  # nobody may be there to read it
                print(f"The dashboard is at {server.url} (Ctrl-C ends it)", flush=True)
            server.wait()
        return 0
    except KeyboardInterrupt:  # before the server had begun
        return 0
    except (OSError, UnicodeError) as problem:  # UnicodeError: the host is no name
        missing = getattr(problem, "filename", None)
        advice = (
            "index.html belongs beside sse_dashboard.py"
            if missing
            else "try another --host or --port"
        )
        print(
            f"cannot serve on {options.host!r} port {options.port}: {problem}; {advice}",
            file=sys.stderr,
        )
    return 1


if __name__ == "__main__":
    sys.exit(main())
