#!/usr/bin/env python3
"""A live dashboard over Server-Sent Events, on the standard library alone.

    python sse_dashboard.py              then open http://localhost:8000

The file follows one tick, from the number to the browser:

    Simulation.events_at(tick) -> events -> encoded once -> frame (bytes)      once a tick, in the generator thread
      -> Broadcaster -> each Subscription's queue -> its thread -> socket      once a client: one put, one write
      ~~> EventSource -> state -> one animation frame -> canvas                in the page, index.html

Nothing flows back but the last event ID that a client sends when it connects again.

Threads, and who ends them:

    main        waits for a signal; leaving its `with` block is the one way down
    serve       accepts connections, and between them watches over all sockets; ended by DashboardServer.__exit__
    generator   computes and publishes the ticks; ended by DashboardServer.__exit__, before the streams
    one for each connection: answers one request. A stream's thread sleeps in queue.Queue.get(); it ends when its
                subscription is ended (the client left, was too slow, the server stops) or when its socket fails

Words:

    event       something to tell: a type ("metric") and the fields of a JSON object; encoded when it is made
    tick        a multiple of the interval, in Unix milliseconds: the moment that readings belong to
    event ID    <tick>-<number within the tick>: ordered, and the same in every server with the same seed
    entry       an event that was published: its ID and its bytes
    batch       the entries published together: those of one tick, or a single event between two ticks
    frame       the bytes of one or more whole events, what one write sends
    audience    the subscriptions that share a filter, and so every frame

Deliberate choices:

  * One request a connection (`Connection: close`). The body of a request is never read, so it can never be taken for
    the next request, and the end of an event stream is the end of its connection.
  * The readings are a function of seed and time. So a restart loses nothing, and two servers need not know each other.
  * History and registration are taken under the lock that publishing takes. That alone makes a resumed stream free of
    gaps and doubles, whatever the timing.
  * A client that does not keep up is disconnected, never waited for: it comes back with its last event ID.
  * Nothing polls a client, and no queue read has a time-out: whoever has something to say puts it into the queue.

Standards: WHATWG HTML "Server-sent events", RFC 9110 (HTTP semantics), RFC 9112 (HTTP/1.1).
"""

from __future__ import annotations

import argparse
import base64
import errno
import hashlib
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
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, islice
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("sse_dashboard")

# ---------------------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------------------

INTERVAL_SECONDS = 1.0  # between ticks: what a person still sees as live
HISTORY_SECONDS = 300.0  # held in memory: the page's longest window
MAX_HISTORY_TICKS = 20_000  # some 60 MB of history, computed within 3 s at the start
MAX_CLIENTS = 1000  # open connections of any kind: each costs a thread

RETRY_MS = 2000  # reconnection time told to clients...
RETRY_SPREAD_MS = 2000  # ... plus a random part, so that they do not all come back at once
HEARTBEAT_SECONDS = 15.0  # silence after which a comment is sent: the standard's own advice against proxies' time-outs
FUTURE_SECONDS = 60.0  # an ID further ahead of the clock is no replica's: it is unknown

QUEUE_FRAMES = 100  # frames a client may be behind before it is disconnected
SEND_BUFFER_BYTES = 16 * 1024  # the kernel's share of a client's backlog: by default it would hide hours of it
SEND_TIMEOUT_SECONDS = 10  # a peer that takes or acknowledges nothing for this long is gone
REPLAY_EVENTS = 64  # history is joined and written this many events at a time: some 10 KB

REQUEST_SECONDS = 10.0  # for a request to arrive whole, however slowly its bytes drip
RESPONSE_SECONDS = 60.0  # for a response that is no stream to be taken
LINGER_SECONDS = 2.0  # after a response, for the client to close first (RFC 9112, 9.6)
MAX_LINGERING = 256  # such sockets at most; beyond it the oldest is closed at once
WATCH_SECONDS = 0.25  # between two looks at all sockets: how soon a departure is noticed
ACCEPT_PAUSE_SECONDS = 0.1  # when accept fails for want of descriptors: waits instead of spinning
BACKLOG = 1024  # connections that may wait to be accepted: a burst, not an overload
RETRY_AFTER_SECONDS = 5  # told to a client for whom there is no place

DRAIN_SECONDS = 1.0  # at the end, for the streams to write what is queued...
HANG_UP_SECONDS = 0.4  # ... and for the threads whose sockets were then shut to notice

# ---------------------------------------------------------------------------------------------------------------------
# Events: what can be said, and its bytes
# ---------------------------------------------------------------------------------------------------------------------

LEVELS = ("info", "success", "warning", "error")


def encode(event_type: str, data: str, event_id: str = "") -> bytes:
    """The bytes of one event, ended by its empty line. Any thread; never blocks.

    The ID comes last: a client that takes an ID as it reads it cannot have the ID of an event that was cut short.
    Every line break of the data (LF, CR or CR LF, and no other: U+2028 is text here) starts a new `data` field, as
    "Interpreting an event stream" in WHATWG HTML asks. Raises ValueError for a type or ID that holds a line break or NUL.
    """
    if re.search(r"[\r\n\0]", event_type + event_id):
        raise ValueError("an event's type and ID are one line each, without NUL")
    lines = [f"event: {event_type}", *(f"data: {line}" for line in re.split(r"\r\n|\r|\n", data))]
    if event_id:
        lines.append(f"id: {event_id}")
    return "\n".join([*lines, "\n"]).encode()


def timestamp(milliseconds: int) -> str:
    """Unix milliseconds as RFC 3339 text in UTC."""
    seconds, rest = divmod(milliseconds, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"


@dataclass(frozen=True)
class Event:
    """Something to tell: an event type, and the fields of a JSON object that says it.

    It is encoded as it is made, so that what cannot be sent raises where the mistake is: ValueError for a type of several
    lines or a number that is not finite, TypeError for a value that JSON does not have. Publishing adds the timestamp and
    the ID. `metric` and `alert` make the two kinds that the page draws.
    """

    type: str
    fields: Mapping[str, Any]
    body: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.type or {"type", "timestamp"} & set(self.fields):
            raise ValueError("an event has a type; its timestamp is added when it is published")
        body = json.dumps({"type": self.type, **self.fields}, ensure_ascii=False, allow_nan=False)
        encode(self.type, body)
        object.__setattr__(self, "body", body[:-1])

    @property
    def topic(self) -> str:
        """What a filter asks for: a metric's name, an alert's level."""
        return str(self.fields.get("level" if self.type == "alert" else "name", ""))

    def encode(self, timestamp: str, event_id: str = "") -> bytes:
        """The event's bytes, with the moment and the ID that publishing gives it."""
        return encode(self.type, f'{self.body}, "timestamp": "{timestamp}"}}', event_id)


def metric(name: str, value: float, unit: str = "") -> Event:
    """A reading. The page draws a card and a line for any name; `unit` is shown as it is ("%", "B/s", "°C").

    Raises TypeError or ValueError when the name is empty or the value is no finite number.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"a metric's name is a text that is not empty, not {name!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"the value of {name} is a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"the value of {name} is a finite number, not {value!r}")
    return Event("metric", {"name": name, "value": value, "unit": unit})


def alert(level: str, message: str, metric: str | None = None) -> Event:
    """Something that happened, with the name of the metric that caused it, if one did.

    Raises ValueError for a level that is not in LEVELS.
    """
    if level not in LEVELS:
        raise ValueError(f"an alert's level is one of {', '.join(LEVELS)}, not {level!r}")
    return Event("alert", {"level": level, "message": message} | ({"metric": metric} if metric else {}))


class Source(Protocol):
    """Where events come from. The simulation is one; a program brings its own.

    A source that sets `replayable = True` promises that its events depend on the tick alone. The history is then filled
    from it at the start, and a client that resumes over a restart misses nothing.
    """

    def events_at(self, tick: int) -> Iterable[Event]:
        """The events of a tick (Unix milliseconds). Called in the generator thread, in the order of the ticks."""


# ---------------------------------------------------------------------------------------------------------------------
# Simulation: a machine as a function of seed and time
# ---------------------------------------------------------------------------------------------------------------------


class Threshold(NamedTuple):
    """When a reading reaches `at` it is a case for `level`, until it falls below `clear`: the band stops flapping."""

    level: str
    at: float
    clear: float


class Reading(NamedTuple):
    """A metric of the simulated machine."""

    unit: str
    digits: int  # after the decimal point
    low: float
    high: float
    label: str
    thresholds: tuple[Threshold, ...] = ()


READINGS = {
    "cpu_usage": Reading("%", 1, 0, 100, "CPU usage", (Threshold("warning", 85, 70), Threshold("error", 95, 82))),
    "memory_usage": Reading("%", 1, 0, 100, "memory usage", (Threshold("warning", 85, 78), Threshold("error", 95, 88))),
    "disk_usage": Reading("%", 1, 0, 100, "disk usage", (Threshold("warning", 85, 80), Threshold("error", 95, 90))),
    "network_in": Reading("B/s", 0, 0, 125e6, "incoming traffic"),
    "network_out": Reading("B/s", 0, 0, 125e6, "outgoing traffic"),
    "temperature": Reading("°C", 1, 20, 105, "temperature", (Threshold("warning", 75, 68), Threshold("error", 85, 78))),
    "load_average": Reading("", 2, 0, 64, "load average", (Threshold("warning", 4, 3), Threshold("error", 6, 4.5))),
}

# One event of each level falls into every stretch of so many seconds: some two a minute, every level within ten minutes.
SYSTEM_EVENTS = {
    "info": (80, ("Service restarted: web", "Configuration reloaded", "Log files rotated", "New sign-in: operator",
                  "Scheduled task started: report", "Package list refreshed")),
    "success": (140, ("Backup finished", "Deployment completed", "Health check passed", "Certificate renewed",
                      "Database vacuum finished")),
    "warning": (200, ("Slow response from the database", "Certificate expires in 14 days", "Clock drift corrected",
                      "Three failed sign-ins from one address", "Queue of outgoing mail is growing")),
    "error": (290, ("Health check failed: cache", "Backup target not reachable", "Worker process crashed; started again",
                    "Connection to the message broker lost")),
}

CORES = 4
TREND_SECONDS = 5.0  # the lagging curves (load, temperature) are laid through points this far apart
ANCHOR_MS = 600_000  # a threshold's state is never traced back further than to a multiple of this


@lru_cache(maxsize=16_384)
def chance(*key: object) -> float:
    """A number in [0, 1), fixed by the key: the same in every process, on every machine, in every Python."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") / 2**64


class Simulation:
    """A machine whose readings and alerts at a tick depend on the seed, the tick and the interval, and on nothing else.

    So a restarted server continues the same curves under the same event IDs. It keeps caches, but no state: any tick can
    be asked for at any time, with the same answer. Not thread-safe; the generator thread alone calls it.
    """

    replayable = True

    def __init__(self, seed: int = 0, interval_ms: int = int(INTERVAL_SECONDS * 1000)) -> None:
        self.seed = seed
        self.interval_ms = interval_ms
        self._high: dict[tuple[str, str], tuple[int, bool]] = {}  # (metric, level) -> (tick, was it high then)
        self._trend = lru_cache(maxsize=1024)(self._trend)  # type: ignore[method-assign]

    def events_at(self, tick: int) -> list[Event]:
        """One metric event for each reading, in the order of READINGS, then the alerts of the tick."""
        readings = {name: self.reading(name, tick) for name in READINGS}
        events = [metric(name, value, READINGS[name].unit) for name, value in readings.items()]
        for name, reading in READINGS.items():
            events += self._threshold_alerts(name, reading, tick, readings[name])
        events += self._system_events(tick)
        return events

    def reading(self, name: str, tick: int) -> float:
        """The value of one metric: finite, rounded, inside its range."""
        kind = READINGS[name]
        value = min(kind.high, max(kind.low, getattr(self, "_" + name)(tick / 1000)))
        return round(value, kind.digits) if kind.digits else round(value)

    # The curves, over seconds. Each is a sum of waves, bursts and jitter.

    def _cpu_usage(self, at: float) -> float:
        return self._cpu_trend(at) + 5 * (self._jitter("cpu", at) - 0.5)

    def _cpu_trend(self, at: float) -> float:
        return 4 + 40 * self._wave("cpu", 170, at) + 18 * self._wave("cpu", 41, at) + 62 * self._burst("cpu", 110, at)

    def _memory_usage(self, at: float) -> float:
        spike = 13 * self._burst("memory", 150, at)
        return self._sawtooth("memory", 420, 0.03, (34, 14), (64, 22), at) + 3 * self._wave("memory", 29, at) + spike

    def _disk_usage(self, at: float) -> float:
        return self._sawtooth("disk", 1500, 0.02, (46, 12), (72, 22), at) + self._wave("disk", 60, at)

    def _network_in(self, at: float) -> float:
        quiet = 30e3 + 150e3 * self._wave("in", 50, at) ** 2
        return (quiet + 9e6 * self._burst("in", 75, at)) * (0.75 + 0.5 * self._jitter("in", at))

    def _network_out(self, at: float) -> float:
        quiet = 15e3 + 90e3 * self._wave("out", 65, at) ** 2
        bursts = 5e6 * self._burst("out", 120, at) + 0.6e6 * self._burst("in", 75, at)
        return (quiet + bursts) * (0.75 + 0.5 * self._jitter("out", at))

    def _temperature(self, at: float) -> float:
        return 35 + 0.52 * self._lagged(12, at) + 4 * self._wave("room", 400, at) + 0.6 * self._jitter("temperature", at)

    def _load_average(self, at: float) -> float:
        waiting = 2.4 * self._burst("io", 310, at)
        return CORES / 100 * 1.15 * self._lagged(8, at) + waiting + 0.05 * self._jitter("load", at)

    # What the curves are made of.

    def _jitter(self, name: str, at: float) -> float:
        """Noise in [0, 1), new at every tick."""
        return chance(self.seed, name, at)

    def _wave(self, name: str, period: float, at: float) -> float:
        """A smooth random curve in [0, 1] that takes a new direction every `period` seconds."""
        slot, phase = divmod(at / period, 1)
        here, there = chance(self.seed, name, period, slot), chance(self.seed, name, period, slot + 1)
        return here + (there - here) * phase * phase * (3 - 2 * phase)

    def _burst(self, name: str, every: float, at: float) -> float:
        """Mostly 0; about once in `every` seconds it leaps to at most 1 within two seconds, and fades."""
        slot, height = at // every, 0.0
        for start_slot in (slot - 1, slot):
            age = at - every * (start_slot + chance(self.seed, name, "start", start_slot))
            if age > 0:
                peak = chance(self.seed, name, "peak", start_slot) ** 2
                fade = every * (0.04 + 0.08 * chance(self.seed, name, "fade", start_slot))
                height += peak * (age / 2 if age < 2 else math.exp((2 - age) / fade))
        return min(1.0, height)

    def _sawtooth(
        self, name: str, period: float, drop: float, low: tuple[float, float], high: tuple[float, float], at: float
    ) -> float:
        """Climbs from a low (a base and a random part) to a high, then falls within `drop` of the period."""
        slot, phase = divmod(at / period, 1)
        bottom, top, after = (
            base + spread * chance(self.seed, name, which, number)
            for (base, spread), which, number in ((low, "low", slot), (high, "high", slot), (low, "low", slot + 1))
        )
        if phase < 1 - drop:
            return bottom + (top - bottom) * phase / (1 - drop)
        return top + (after - top) * (phase - 1 + drop) / drop

    def _lagged(self, steps: int, at: float) -> float:
        """The CPU's trend as something slow feels it: an average whose weights halve about every `steps` / 2 points."""
        slot, phase = divmod(at / TREND_SECONDS, 1)
        return self._trend(steps, int(slot) - 1) * (1 - phase) + self._trend(steps, int(slot)) * phase

    def _trend(self, steps: int, slot: int) -> float:
        weights = [0.5 ** (2 * back / steps) for back in range(2 * steps)]
        past = (min(100.0, self._cpu_trend((slot - back) * TREND_SECONDS)) for back in range(2 * steps))
        return sum(w * value for w, value in zip(weights, past)) / sum(weights)

    # Alerts.

    def _threshold_alerts(self, name: str, kind: Reading, tick: int, value: float) -> Iterator[Event]:
        before = sum(self._is_high(name, threshold, tick - self.interval_ms) for threshold in kind.thresholds)
        after = sum(self._is_high(name, threshold, tick) for threshold in kind.thresholds)
        shown = f"{value:.{kind.digits}f} {kind.unit}".rstrip()
        if after > before:
            word = ("High", "Critical")[after - 1]
            yield alert(kind.thresholds[after - 1].level, f"{word} {kind.label} detected: {shown}", name)
        elif before and not after:
            label = kind.label[0].upper() + kind.label[1:]
            yield alert("success", f"{label} back to normal: {shown}", name)

    def _is_high(self, name: str, threshold: Threshold, tick: int) -> bool:
        """Whether the threshold counts as crossed: the last reading outside the band between `clear` and `at` decides.

        Inside the band the answer is that of the tick before; at every ANCHOR_MS the nearer edge decides. So the search
        ends, and has the same end whether this process has seen the ticks before or not.
        """
        known, answer = self._high.get((name, threshold.level), (None, False))
        moment = tick
        while moment != known:
            value = self.reading(name, moment)
            anchored = moment % ANCHOR_MS < self.interval_ms
            if value >= threshold.at or value < threshold.clear or anchored:
                answer = value >= ((threshold.at + threshold.clear) / 2 if anchored else threshold.at)
                break
            moment -= self.interval_ms
        self._high[name, threshold.level] = (tick, answer)
        return answer

    def _system_events(self, tick: int) -> Iterator[Event]:
        before = tick - self.interval_ms
        for level, (seconds, messages) in SYSTEM_EVENTS.items():
            length = seconds * 1000
            for slot in range(before // length, tick // length + 1):
                if before < int(length * (slot + chance(self.seed, level, "moment", slot))) <= tick:
                    yield alert(level, messages[int(len(messages) * chance(self.seed, level, "message", slot))])


# ---------------------------------------------------------------------------------------------------------------------
# Subscription: one client's queue
# ---------------------------------------------------------------------------------------------------------------------

EventID = tuple[int, int]  # (tick in Unix milliseconds, number within the tick): compared by order


class Entry(NamedTuple):
    """An event that was published."""

    id: EventID
    type: str
    topic: str
    wire: bytes


@dataclass(frozen=True)
class Filter:
    """What a client wants to see. Equal filters share every frame."""

    types: frozenset[str] | None = None  # None: every type, and this server's `status` with them
    names: frozenset[str] = frozenset()  # of metrics; empty: all
    levels: frozenset[str] = frozenset()  # of alerts; empty: all
    after: EventID = (0, 0)  # only later events: set for a client that is a little ahead of this server's clock

    def passes(self, entry: Entry) -> bool:
        if entry.id <= self.after or (self.types is not None and entry.type not in self.types):
            return False
        wanted = {"metric": self.names, "alert": self.levels}.get(entry.type)
        return not wanted or entry.topic in wanted


class Subscription:
    """One client's place in the broadcast: a bounded queue of frames, and how it came to an end.

    `offer` and `end` are called by any thread and never block; `frames` is for the client's own thread, which it blocks.
    """

    def __init__(self, hang_up: Callable[[], None]) -> None:
        """`hang_up` cuts the client's connection, from any thread, without blocking."""
        self.opening: Iterator[bytes] = iter(())  # what the client gets before the live frames
        self.reason = ""  # why it ended: "" while it lives
        self._hang_up = hang_up
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_FRAMES)

    def offer(self, frame: bytes) -> None:
        """Queues a frame. A client whose queue is full is too slow: it is cut, and can resume by its last event ID."""
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self.end("slow")

    def end(self, reason: str) -> None:
        """Ends the stream after the frames that are queued; the first reason stays. Does nothing when it has ended."""
        if not self.reason:
            self.reason = reason
            try:
                self._queue.put_nowait(None)
            except queue.Full:  # not even the end fits in: its thread is stuck in a write
                self._hang_up()

    def frames(self) -> Iterator[bytes]:
        """What to write, in order, until the end; blocks while there is nothing."""
        yield from self.opening
        while (frame := self._queue.get()) is not None:
            yield frame


# ---------------------------------------------------------------------------------------------------------------------
# Broadcaster: event IDs, history, fan-out, resume
# ---------------------------------------------------------------------------------------------------------------------


class Audience:
    """The subscriptions that share a filter. Guarded by the broadcaster's lock."""

    def __init__(self) -> None:
        self.members: set[Subscription] = set()
        self.heard_at = time.monotonic()  # when it was last sent anything

    def send(self, frame: bytes) -> None:
        self.heard_at = time.monotonic()
        for subscription in self.members:
            subscription.offer(frame)


class Broadcaster:
    """Gives every event its ID, holds the history, and hands each event to every subscription whose filter it passes.

    Any thread may call any method; none blocks, but for the lock.
    """

    def __init__(self, interval_ms: int = int(INTERVAL_SECONDS * 1000), history_ms: int = int(HISTORY_SECONDS * 1000)) -> None:
        self.interval_ms = interval_ms
        self.history_ms = history_ms
        self.metric_names: dict[str, None] = {}  # every name published so far: what a filter may ask for
        self.events_published = 0
        self._started_at = time.monotonic()
        # Guards everything here. publish() offers while it holds this, which is safe because offer() never blocks.
        self._lock = threading.Lock()
        self._history: list[tuple[Entry, ...]] = []  # batches, by ID
        self._last: EventID = (0, 0)  # the newest ID, or (tick, 0) when the newest tick had no event
        self._gone: EventID = (0, 0)  # events up to this ID are no longer held, or never were
        self._audiences: dict[Filter, Audience] = {}
        self._closed = False

    # Publishing.

    def advance(self, ticks: Iterable[tuple[int, Sequence[Event]]], live: bool = True) -> None:
        """Publishes the events of one or more ticks as one frame. `live=False` only remembers them, to fill the history."""
        with self._lock:
            batches = [self._remember(tick, 1, events) for tick, events in ticks]
            if live:
                self.events_published += sum(map(len, batches))
                self._fan_out(list(chain.from_iterable(batches)), self._status(self._last[0]))

    def publish(self, event: Event) -> None:
        """Publishes one event at once, between two ticks. Raises RuntimeError after the end."""
        if not isinstance(event, Event):
            raise TypeError(f"publish() takes an Event, as metric() and alert() make them, not {event!r}")
        with self._lock:
            if self._closed:
                raise RuntimeError("the server has ended: nobody is left to publish to")
            tick, number = self._last
            # The milliseconds since the tick: also after a restart within the same tick the number is a new one.
            number = max(number + 1, min(now_ms() - tick, self.interval_ms))
            batch = self._remember(tick, number, [event])
            self.events_published += 1
            self._fan_out(batch, b"")

    def skip_to(self, tick: int) -> None:
        """Forgets what came before a tick and ends every stream, so that each client comes back and is told of the gap."""
        with self._lock:
            self._history.clear()
            self._gone = self._last = (tick, 0)
            self._end_all("lapsed")

    def heartbeat(self) -> None:
        """Sends a comment to whoever has heard nothing for HEARTBEAT_SECONDS: it keeps proxies and finds dead peers."""
        with self._lock:
            for audience in self._audiences.values():
                if time.monotonic() - audience.heard_at >= HEARTBEAT_SECONDS:
                    audience.send(b":\n\n")

    def close(self) -> None:
        """Ends every stream, those that are yet to come included."""
        with self._lock:
            self._closed = True
            self._end_all("shutdown")

    def _remember(self, tick: int, first_number: int, events: Iterable[Event]) -> tuple[Entry, ...]:
        if not self._last[0]:
            self._gone = (tick, 0)
        moment = timestamp(tick)
        batch = tuple(
            Entry((tick, number), event.type, event.topic, event.encode(moment, f"{tick}-{number}"))
            for number, event in enumerate(events, first_number)
        )
        self.metric_names |= dict.fromkeys(entry.topic for entry in batch if entry.type == "metric")
        self._last = batch[-1].id if batch else (tick, 0)
        if batch:
            self._history.append(batch)
        # The newest tick is always held: it is what a new client sees first.
        kept = bisect_right(self._history, min(tick - self.history_ms, tick - 1), key=lambda batch: batch[0].id[0])
        if kept:
            self._gone = self._history[kept - 1][-1].id
            del self._history[:kept]
        return batch

    def _fan_out(self, batch: Sequence[Entry], status: bytes) -> None:
        for wanted, audience in self._audiences.items():
            try:
                frame = b"".join([entry.wire for entry in batch if wanted.passes(entry)])
            except Exception:
                logger.exception("%r failed: its audience misses %s", wanted, batch)
                continue
            if wanted.types is None:
                frame += status
            if frame:
                audience.send(frame)

    def _end_all(self, reason: str) -> None:
        for audience in self._audiences.values():
            for subscription in audience.members:
                subscription.end(reason)

    # Subscribing.

    @contextmanager
    def subscribe(
        self,
        wanted: Filter = Filter(),
        last_event_id: str | None = None,
        history_seconds: float | None = None,
        hang_up: Callable[[], None] = lambda: None,
    ) -> Iterator[Subscription]:
        """A subscription for the length of a `with` block.

        It begins with the reconnection time, then gets exactly the events after the last event ID that are held; without
        one those of the last seconds, or else those of the newest tick. An ID that is older than the history, or that
        this server cannot have sent, is answered by a `reset` event and all that is held.
        """
        subscription = Subscription(hang_up)
        with self._lock:
            reset, after = self._position(last_event_id, history_seconds)
            missed = self._history[bisect_right(self._history, after, key=lambda batch: batch[-1].id) :]
            wanted = replace(wanted, after=max(after, self._last) if after > self._last else (0, 0))
            audience = self._audiences.setdefault(wanted, Audience())
            audience.members.add(subscription)
            opening = f"retry: {RETRY_MS + random.randrange(RETRY_SPREAD_MS + 1)}\n\n".encode()
            if reset:
                opening += Event("reset", {"reason": reset}).encode(timestamp(now_ms()))
            if wanted.types is None:
                opening += self._status(now_ms())
            if self._closed:
                subscription.end("shutdown")
        subscription.opening = chain([opening], replay(missed, replace(wanted, after=after)))
        try:
            yield subscription
        finally:
            with self._lock:
                audience.members.discard(subscription)
                if not audience.members and self._audiences.get(wanted) is audience:
                    del self._audiences[wanted]

    def _position(self, last_event_id: str | None, history_seconds: float | None) -> tuple[str, EventID]:
        """Why a client must start over, if it must, and the ID after which its events begin."""
        if last_event_id is not None:
            found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", last_event_id)
            after = (int(found[1]), int(found[2])) if found else None
            if after is None or after[0] > max(now_ms(), self._last[0]) + FUTURE_SECONDS * 1000:
                return "unknown", self._gone
            return ("expired", self._gone) if after < self._gone else ("", after)
        if history_seconds is not None:
            return "", (self._last[0] - int(history_seconds * 1000), sys.maxsize)
        return "", (self._last[0], 0)

    # What an operator asks.

    @property
    def connections(self) -> int:
        """How many event streams are open. The caller need not hold the lock."""
        return sum(len(audience.members) for audience in list(self._audiences.values()))

    @property
    def last_event_id(self) -> str:
        return "-".join(map(str, self._history[-1][-1].id)) if self._history else ""

    @property
    def uptime_seconds(self) -> float:
        return round(time.monotonic() - self._started_at, 1)

    def _status(self, moment_ms: int) -> bytes:
        status = {"uptime_seconds": self.uptime_seconds, "connections": self.connections, "interval_seconds": self.interval_ms / 1000}
        return Event("status", status).encode(timestamp(moment_ms))


def replay(batches: Iterable[Iterable[Entry]], wanted: Filter) -> Iterator[bytes]:
    """The history as frames. They are joined a handful at a time as they are written: the history is shared, not copied."""
    passing = (entry.wire for batch in batches for entry in batch if wanted.passes(entry))
    while frame := b"".join(islice(passing, REPLAY_EVENTS)):
        yield frame


def now_ms() -> int:
    return int(time.time() * 1000)


# ---------------------------------------------------------------------------------------------------------------------
# Generator thread: time
# ---------------------------------------------------------------------------------------------------------------------


class SteadyClock:
    """The wall clock, but it never goes back: when the wall clock is set back, time runs on at its own pace from there."""

    def __init__(self) -> None:
        self._wall, self._monotonic = time.time(), time.monotonic()

    def now_ms(self) -> int:
        wall = time.time()
        steady = self._wall + time.monotonic() - self._monotonic
        if wall > steady:
            self._wall, self._monotonic = wall, time.monotonic()
        return int(max(wall, steady) * 1000)


class Generator:
    """Publishes the events of all sources at every tick, in a thread of its own, for the length of a `with` block.

    Entering fills the history from the replayable sources and starts the thread; leaving ends it. A source that raises is
    logged, and its events of that tick are left out. Ticks that were late (a pause of the process, a sleeping laptop) are
    made up for, as far back as the history goes.
    """

    def __init__(self, broadcaster: Broadcaster, sources: Sequence[Source]) -> None:
        self.broadcaster = broadcaster
        # Replayable ones first, so that their events have the same numbers when the history is filled without the others.
        self._sources = sorted(sources, key=lambda source: not is_replayable(source))
        self._replayable = [source for source in sources if is_replayable(source)]
        self._clock = SteadyClock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    def __enter__(self) -> Generator:
        interval = self.broadcaster.interval_ms
        newest = self._clock.now_ms() // interval * interval
        oldest = newest - max(0, self.broadcaster.history_ms - 1) // interval * interval
        filling = ((tick, self._events(self._replayable, tick)) for tick in range(oldest, newest + 1, interval))
        self.broadcaster.advance(filling, live=False)
        self._next = newest + interval
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DRAIN_SECONDS)

    def _run(self) -> None:
        interval = self.broadcaster.interval_ms
        while not self._stop.wait(max(0, min(1000, self._next - self._clock.now_ms())) / 1000):
            now = self._clock.now_ms()
            oldest = now - max(self.broadcaster.history_ms, 60_000)
            if self._next < oldest:
                self._next = oldest // interval * interval + interval
                self.broadcaster.skip_to(self._next)
            due = range(self._next, now + 1, interval)
            if due:
                self._next = due[-1] + interval
                self.broadcaster.advance(
                    [(tick, self._events(self._sources if tick == due[-1] else self._replayable, tick)) for tick in due]
                )
            self.broadcaster.heartbeat()

    def _events(self, sources: Sequence[Source], tick: int) -> list[Event]:
        events: list[Event] = []
        for source in sources:
            try:
                found = list(source.events_at(tick))
                for event in found:
                    if not isinstance(event, Event):
                        raise TypeError(f"a source returns events, as metric() and alert() make them, not {event!r}")
                events += found
            except Exception:
                logger.exception("%r raised at tick %d: its events are left out", source, tick)
        return events


def is_replayable(source: Source) -> bool:
    return bool(getattr(source, "replayable", False))


# ---------------------------------------------------------------------------------------------------------------------
# Handler: one request
# ---------------------------------------------------------------------------------------------------------------------

STREAMS: dict[str, frozenset[str] | None] = {
    "/api/events/metrics": frozenset({"metric"}),
    "/api/events/alerts": frozenset({"alert"}),
    "/api/events/all": None,
}
ROUTES = ("/", "/api/status", *STREAMS)
METHODS = "GET, HEAD, OPTIONS"
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
PROBLEMS = {
    HTTPStatus.BAD_REQUEST: "This is not a request that HTTP/1.1 allows.",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is longer than 64 KiB.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "There are more than 100 header fields, or one is longer than 64 KiB.",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "Only HTTP/1.0 and HTTP/1.1 are spoken here.",
}


class BadRequest(ValueError):
    """A request that is answered with 400; its text is the sentence in the answer."""


class Page(NamedTuple):
    """The page and the headers that it is served with."""

    body: bytes
    headers: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> Page:
        """Reads the page, and allows by its hash each script and style that stands in it, and nothing else."""
        body = path.read_bytes()
        hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
        for tag, text in re.findall(rb"<(script|style)\b[^>]*>(.*?)</\1>", body, re.DOTALL):
            hashes[tag].append(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'")
        policy = (
            "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            f"; script-src {' '.join(hashes[b'script']) or repr('none')}; style-src {' '.join(hashes[b'style']) or repr('none')}"
        )
        return cls(body, {
            "Content-Type": "text/html; charset=utf-8",
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            **NOSNIFF,
        })


class Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection, in the connection's own thread. It keeps no state of its own."""

    server: DashboardServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that an answer to garbage has a status line

    def __getattr__(self, name: str) -> Callable[[], None]:
        """BaseHTTPRequestHandler looks for a method do_<METHOD>. Here every HTTP method goes the same way."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        """The one way of every request that could be parsed."""
        self.server.request_arrived(self.connection)
        try:
            path, query = self.target()
            if path not in ROUTES:
                self.send_problem(HTTPStatus.NOT_FOUND, f"There is nothing here; there is {', '.join(ROUTES)}.")
            elif self.command == "OPTIONS":
                self.respond(HTTPStatus.NO_CONTENT, {
                    "Allow": METHODS,
                    "Access-Control-Allow-Methods": METHODS,
                    "Access-Control-Allow-Headers": "Last-Event-ID, Cache-Control",
                    **self.shared_with_all(path),
                })
            elif self.command not in METHODS:
                self.send_problem(HTTPStatus.METHOD_NOT_ALLOWED, f"This method is not allowed here; {METHODS} are.", {"Allow": METHODS})
            elif path == "/":
                self.send_page(self.server.page)
            elif path == "/api/status":
                self.send_json(HTTPStatus.OK, self.server.status(), {"Cache-Control": "no-store", **self.shared_with_all(path)})
            else:
                self.send_stream(path, query)
        except BadRequest as problem:
            self.send_problem(HTTPStatus.BAD_REQUEST, str(problem))

    def target(self) -> tuple[str, dict[str, list[str]]]:
        """The path and the query, of a target in origin form or absolute form (RFC 9112, 3.2). Raises BadRequest."""
        if self.request_version != "HTTP/1.0" and len(self.headers.get_all("Host", [])) != 1:
            raise BadRequest("A request has exactly one Host header field.")
        path, _, query = self.path.partition("?")
        if not path.startswith("/") and path != "*":
            try:
                parts = urlsplit(self.path)
            except ValueError:
                parts = urlsplit("")
            if parts.scheme not in ("http", "https"):
                raise BadRequest("The request's target is no path of this server.")
            path, query = parts.path or "/", parts.query
        if path == "*" and self.command == "OPTIONS":
            path = "/"
        try:
            return unquote(path), parse_qs(query, keep_blank_values=True, max_num_fields=100)
        except ValueError:
            raise BadRequest("There are more than 100 parameters.") from None

    # Answers.

    def send_page(self, page: Page) -> None:
        known = re.findall(r'"[^"]*"|\*', self.headers.get("If-None-Match", ""))
        if page.headers["ETag"] in known or "*" in known:
            self.respond(HTTPStatus.NOT_MODIFIED, page.headers)
        else:
            self.respond(HTTPStatus.OK, page.headers, page.body)

    def send_stream(self, path: str, query: Mapping[str, list[str]]) -> None:
        """Streams events until the client leaves or the server ends it. Raises BadRequest before anything is sent."""
        wanted = Filter(
            STREAMS[path],
            self.choice(query, "name", self.server.broadcaster.metric_names, "metric" in (STREAMS[path] or ("metric",))),
            self.choice(query, "level", LEVELS, "alert" in (STREAMS[path] or ("alert",))),
        )
        history_seconds = self.seconds(query, "history")
        last_event_id = self.headers.get("Last-Event-ID") or query.get("lastEventId", [""])[-1]
        if re.search(r"[\0-\x1f\x7f]", last_event_id):
            raise BadRequest("An event ID has no control characters.")
        self.send_headers(HTTPStatus.OK, {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store, no-transform",
            "X-Accel-Buffering": "no",
            **NOSNIFF,
            **self.shared_with_all(path),
        })
        if self.command == "HEAD":
            return
        # A stream may last for days: what only its request needed goes now, a third of what a client costs.
        self.rfile.close()
        del self.headers
        with self.server.stream(self.connection, self.client_address[0], path, wanted, last_event_id or None, history_seconds) as frames:
            for frame in frames:
                self.wfile.write(frame)

    def choice(self, query: Mapping[str, list[str]], key: str, allowed: Iterable[str], applies: bool) -> frozenset[str]:
        """The values of a filter, given several times or with commas; empty when there are none. Raises BadRequest."""
        values = frozenset(value for text in query.get(key, ()) for value in text.split(",") if value)
        if not values <= set(allowed):
            raise BadRequest(f"The parameter {key} is one or more of {', '.join(allowed)}.")
        return values if applies else frozenset()

    def seconds(self, query: Mapping[str, list[str]], key: str) -> float | None:
        text = query.get(key, [""])[-1]
        if text and not re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", text):
            raise BadRequest(f"The parameter {key} is a number of seconds.")
        return float(text) if text else None

    def shared_with_all(self, path: str) -> dict[str, str]:
        """The data is public: a page of any origin may read it."""
        return {} if path == "/" else {"Access-Control-Allow-Origin": "*"}

    # How an answer is written.

    def send_headers(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def respond(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """A whole answer. HEAD gets the same headers without the body (RFC 9110, 9.3.2)."""
        self.send_headers(status, dict(headers) if body is None else {**headers, "Content-Length": str(len(body))})
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, status: HTTPStatus, value: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.respond(status, {"Content-Type": "application/json", **NOSNIFF, **headers}, body)

    def send_problem(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] = {}) -> None:
        self.send_json(status, {"error": sentence}, {"Access-Control-Allow-Origin": "*", **headers})

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Called by the base class when it cannot parse a request. Its message would quote the client; ours does not."""
        status = HTTPStatus(code)
        self.send_problem(status, PROBLEMS.get(status, status.description or status.phrase))

    def handle_expect_100(self) -> bool:
        return True  # a body is not wanted: the final answer comes at once

    def version_string(self) -> str:
        return "sse-dashboard"

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s %s", self.client_address[0], (format % args).encode("unicode_escape").decode())


# ---------------------------------------------------------------------------------------------------------------------
# Server: sockets and lifetimes
# ---------------------------------------------------------------------------------------------------------------------

# Set on the listening socket: accepted ones inherit them. What a system does not have is left out.
SOCKET_OPTIONS = (
    ("IPPROTO_TCP", "TCP_NODELAY", 1),  # a frame is one write: there is nothing to wait for
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", SEND_TIMEOUT_SECONDS * 1000),  # a peer that vanished acknowledges nothing
    ("SOL_SOCKET", "SO_SNDTIMEO", struct.pack("@ll", SEND_TIMEOUT_SECONDS, 0)),  # cheaper than settimeout(): no poll a write
    ("SOL_SOCKET", "SO_SNDBUF", SEND_BUFFER_BYTES),
)
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SPARE_DESCRIPTORS = 64  # for what is no client: files, the listener, the selector
REASONS = ("closed", "slow", "stalled", "refused", "lapsed", "failed", "shutdown")
REFUSAL_BODY = b'{"error": "There is no place for another connection now; try again later."}\n'
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\n"
    b"Content-Length: %d\r\nRetry-After: %d\r\nConnection: close\r\n\r\n%b" % (len(REFUSAL_BODY), RETRY_AFTER_SECONDS, REFUSAL_BODY)
)


def hang_up(connection: socket.socket) -> None:
    """Cuts a connection, from any thread: whoever reads or writes it comes back at once. It is not yet closed."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def still_there(connection: socket.socket) -> bool:
    """Throws away what a readable socket has received; False when the peer has closed. Never blocks."""
    try:
        return bool(connection.recv(65536, getattr(socket, "MSG_DONTWAIT", 0)))
    except BlockingIOError:
        return True
    except OSError:
        return False


class DashboardServer(ThreadingHTTPServer):
    """The dashboard: entering its `with` block serves, leaving it ends every stream in order, within two seconds.

        with DashboardServer(sources=[Simulation(), MySource()]) as server:
            print(server.url)
            server.publish(alert("info", "Hello"))
            server.wait()

    The constructor binds the port and raises OSError when it cannot, also when index.html is missing. Override
    `stream_opened` and `stream_closed` to see clients come and go.
    """

    daemon_threads = True  # the end of the process does not wait for a thread...
    block_on_close = False  # ... and server_close() does not either: __exit__ waits for the streams, with a bound
    request_queue_size = BACKLOG

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        sources: Sequence[Source] | None = None,
        interval: float = INTERVAL_SECONDS,
        history: float = HISTORY_SECONDS,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        """`interval` and `history` in seconds; without `sources` the simulation is shown."""
        interval_ms = round(interval * 1000)
        self.page = Page.load(Path(__file__).with_name("index.html"))
        self.broadcaster = Broadcaster(interval_ms, round(history * 1000))
        self.sources = [Simulation(interval_ms=interval_ms)] if sources is None else sources
        self.max_clients = max_clients
        # Guards the books below; notified when a connection ends.
        self._books = threading.Condition()
        self._deadlines: dict[socket.socket, float] = {}  # every open connection, and when it must be done
        self._lingering: dict[socket.socket, float] = {}  # answered, and waiting for the client to close first
        self._watched = selectors.DefaultSelector()  # streams and lingering sockets: readable when the peer has gone
        self._ended = Counter(dict.fromkeys(REASONS, 0))
        self._next_watch = 0.0
        self._starved = False
        self._down = threading.Event()
        self.address_family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        super().__init__((str(address[0]), int(address[1])), Handler)

    # From start to end.

    def server_bind(self) -> None:
        """Binds without HTTPServer's look-up of the host's full name, which may take half a minute."""
        if self.address_family == socket.AF_INET6:
            with suppress(AttributeError, OSError):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for level, option, value in SOCKET_OPTIONS:
            with suppress(AttributeError, OSError):
                self.socket.setsockopt(getattr(socket, level), getattr(socket, option), value)
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.server_name, self.server_name)
        return f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self.server_port}/"

    def generator(self) -> AbstractContextManager[object]:
        """What makes time pass while the server runs. A test overrides it and publishes ticks by hand."""
        return Generator(self.broadcaster, self.sources)

    def __enter__(self) -> DashboardServer:
        if resource is not None:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            needed = self.max_clients + MAX_LINGERING + SPARE_DESCRIPTORS
            allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            if soft != resource.RLIM_INFINITY and soft < allowed:
                with suppress(ValueError, OSError):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        self._generator = self.generator()
        self._generator.__enter__()
        threading.Thread(target=self._serve, name="serve", daemon=True).start()
        return self

    def _serve(self) -> None:
        # Inherited by the clients' threads: a thread that is woken does not push aside the one that woke it. So the
        # generator fills all queues in one go, instead of losing the processor and the interpreter lock at each.
        with suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self.serve_forever(WATCH_SECONDS)

    def wait(self) -> None:
        """Blocks until the server has ended; in the main thread, a signal's exception comes out of it."""
        self._down.wait()

    def publish(self, event: Event) -> None:
        """Publishes one event at once, from any thread; never blocks. Raises RuntimeError after the end."""
        self.broadcaster.publish(event)

    def __exit__(self, *_: object) -> None:
        """The one way down: no more ticks, no more clients, every stream to its end, then whoever is still there is cut."""
        self._generator.__exit__(None, None, None)
        self.shutdown()
        self.socket.close()
        self.broadcaster.close()
        with self._books:
            self._books.wait_for(lambda: not self.broadcaster.connections, DRAIN_SECONDS)
            for connection in self._deadlines:
                hang_up(connection)
            self._books.wait_for(lambda: not self._deadlines, HANG_UP_SECONDS)
        self.server_close()
        self._down.set()

    def server_close(self) -> None:
        super().server_close()
        with self._books:
            for connection in self._lingering:
                connection.close()
            self._watched.close()

    # A connection's life: get_request, process_request (here, or a refusal), answer, shutdown_request, closed.

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. Without a free descriptor it waits a little, or serve_forever would spin."""
        try:
            accepted = super().get_request()
        except OSError as problem:
            if problem.errno in NO_DESCRIPTORS:
                if not self._starved:
                    logger.error("cannot accept connections for now: %s", problem.strerror)
                self._starved = True
                self._down.wait(ACCEPT_PAUSE_SECONDS)
            raise
        self._starved = False
        return accepted

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for the connection, or refuses it at once when the house is full; nobody is evicted."""
        with self._books:
            admitted = len(self._deadlines) < self.max_clients
            if admitted:
                self._deadlines[request] = time.monotonic() + REQUEST_SECONDS
            else:
                self._ended["refused"] += 1
        if admitted:
            super().process_request(request, client_address)
        else:
            with suppress(OSError):
                request.sendall(REFUSAL)
            self.shutdown_request(request)

    def request_arrived(self, connection: socket.socket) -> None:
        """The request is whole; its answer has a deadline of its own."""
        with self._books:
            self._deadlines[connection] = time.monotonic() + RESPONSE_SECONDS

    @contextmanager
    def stream(
        self,
        connection: socket.socket,
        address: str,
        path: str,
        wanted: Filter,
        last_event_id: str | None,
        history_seconds: float | None,
    ) -> Iterator[Iterator[bytes]]:
        """The frames for a client, for the length of a `with` block that writes them; then says how the stream ended."""
        started_at, events = time.monotonic(), 0

        def counted(frames: Iterator[bytes]) -> Iterator[bytes]:
            nonlocal events
            for frame in frames:
                yield frame
                events += frame.count(b"\ndata: ")

        with self.broadcaster.subscribe(wanted, last_event_id, history_seconds, partial(hang_up, connection)) as subscription:
            with self._books:
                self._deadlines[connection] = math.inf
                self._watched.register(connection, selectors.EVENT_READ, subscription)
            self.stream_opened(address, path)
            try:
                yield counted(subscription.frames())
            except OSError as problem:
                subscription.end("stalled" if isinstance(problem, (BlockingIOError, TimeoutError)) else "closed")
            except BaseException:
                subscription.end("failed")
                raise
            finally:
                with self._books:
                    with suppress(KeyError):  # the watcher may have seen the client go
                        self._watched.unregister(connection)
                    self._ended[subscription.reason] += 1
        self.stream_closed(address, path, subscription.reason, time.monotonic() - started_at, events)

    def shutdown_request(self, request: Any) -> None:
        """Closes in two steps (RFC 9112, 9.6): a close with unread input would reset the connection, and the answer with it.

        The connection gives up its place at once; its socket waits, watched, until the client closes too.
        """
        try:
            request.setblocking(False)
            request.shutdown(socket.SHUT_WR)
            lingers = still_there(request)
        except OSError:
            lingers = False
        with self._books:
            if lingers:
                self._lingering[request] = time.monotonic() + LINGER_SECONDS
                self._watched.register(request, selectors.EVENT_READ)
                if len(self._lingering) > MAX_LINGERING:
                    self._let_go(next(iter(self._lingering)))
            else:
                self.close_request(request)
            self._deadlines.pop(request, None)
            self._books.notify_all()

    def service_actions(self) -> None:
        """Looks after all sockets, called by serve_forever at least every WATCH_SECONDS."""
        now = time.monotonic()
        if now < self._next_watch:
            return
        self._next_watch = now + WATCH_SECONDS
        with self._books:
            for key, _ in self._watched.select(0):
                connection: Any = key.fileobj
                if not still_there(connection):
                    if key.data:
                        key.data.end("closed")
                        hang_up(connection)
                        self._watched.unregister(connection)
                    else:
                        self._let_go(connection)
            for connection in [late for late, deadline in self._lingering.items() if deadline < now]:
                self._let_go(connection)
            for connection in [late for late, deadline in self._deadlines.items() if deadline < now]:
                hang_up(connection)

    def _let_go(self, connection: socket.socket) -> None:
        del self._lingering[connection]
        self._watched.unregister(connection)
        connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A departure is not an error; anything else is logged with its traceback."""
        if isinstance(sys.exc_info()[1], OSError):
            logger.debug("%s left", client_address[0])
        else:
            logger.exception("a request of %s failed", client_address[0])

    # What an operator sees.

    def stream_opened(self, address: str, path: str) -> None:
        """A hook, called in the client's thread when its stream begins."""

    def stream_closed(self, address: str, path: str, reason: str, seconds: float, events: int) -> None:
        """A hook, called in the client's thread when its stream has ended; `reason` is one of REASONS."""
        logger.debug("%s %s ended after %.1f s and %d events: %s", address, path, seconds, events, reason)

    def status(self) -> dict[str, Any]:
        """The snapshot that /api/status shows."""
        with self._books:
            ended = dict(self._ended)
        return {
            "status": "ok",
            "uptime_seconds": self.broadcaster.uptime_seconds,
            "connections": self.broadcaster.connections,
            "events_published": self.broadcaster.events_published,
            "last_event_id": self.broadcaster.last_event_id,
            "ended": ended,
        }


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def number(kind: Callable[[str], float], low: float, high: float, unit: str = "") -> Callable[[str], float]:
    """An argparse type: a number within a range."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:,} to {high:,}{unit}")

    return parse


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="A live dashboard over Server-Sent Events.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address or name to listen on, IPv4 or IPv6")
    parser.add_argument("--port", type=number(int, 0, 65535), default=8000, help="0 picks a free one")
    parser.add_argument("--interval", type=number(float, 0.05, 60, " seconds"), default=INTERVAL_SECONDS, help="seconds between ticks")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation: the same seed, the same curves")
    parser.add_argument("--history", type=number(float, 0, 3600, " seconds"), default=HISTORY_SECONDS, help="seconds of events held in memory")
    parser.add_argument("--max-clients", type=number(int, 1, 100_000), default=MAX_CLIENTS, help="open connections of any kind")
    parser.add_argument("--verbose", action="store_true", help="log every request, and every stream's end")
    options = parser.parse_args(arguments)
    if options.history / options.interval > MAX_HISTORY_TICKS:
        longest = MAX_HISTORY_TICKS * options.interval
        parser.error(f"argument --history: at most {MAX_HISTORY_TICKS:,} ticks are held; at this interval {longest:g} seconds")
    return options


def interrupt(signal_number: int, frame: object) -> None:
    """SIGINT and SIGTERM alike: the first unwinds the main thread, a second ends the process at once."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    for name in (signal.SIGINT, signal.SIGTERM):  # before the URL is printed: whoever waits for it may send one at once
        signal.signal(name, interrupt)
    try:
        simulation = Simulation(options.seed, round(options.interval * 1000))
        with DashboardServer(
            options.host,
            options.port,
            sources=[simulation],
            interval=options.interval,
            history=options.history,
            max_clients=options.max_clients,
        ) as server:
            print(f"The dashboard is at {server.url} (Ctrl-C ends it)", flush=True)
            server.wait()
    except KeyboardInterrupt:
        return 0
    except FileNotFoundError as problem:
        print(f"{problem.filename} is missing: put it beside sse_dashboard.py", file=sys.stderr)
    except OSError as problem:
        print(f"cannot listen on {options.host} port {options.port}: {problem.strerror}; try another --host or --port", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
