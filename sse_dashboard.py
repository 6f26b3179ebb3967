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
    generator   computes and publishes the ticks; DashboardServer.__exit__ ends it first
    serve       accepts connections, and between them looks after all sockets and sends heartbeats; __exit__ ends it next
    one for each connection: answers one request. A stream's thread sleeps in queue.Queue.get(), until its subscription
                is ended (the client left, was too slow, the server stops) or its socket fails

Words:

    event       something to tell: a type ("metric") and the fields of a JSON object
    tick        a multiple of the interval, in Unix milliseconds: the moment that readings belong to
    event ID    <tick>-<number within the tick>: ordered, and the same in every server with the same seed
    entry       an event that was published: its ID and its bytes
    batch       the entries published together: those of one tick, or a single event between two ticks
    frame       the bytes of one or more whole events: what one write sends
    audience    the subscriptions that share a filter, and so every frame

Deliberate choices:

  * One request a connection (`Connection: close`). The body of a request is never read, so it can never be taken for
    the next request, and the end of an event stream is the end of its connection.
  * The readings are a function of seed and time. So a restart loses nothing, and two servers need not know each other.
  * History and registration are taken under the lock that publishing takes. That alone makes a resumed stream free of
    gaps and doubles, whatever the timing.
  * A client that does not keep up is disconnected, never waited for: it comes back with its last event ID.
  * No queue is read with a time-out: whoever has something to say, a heartbeat or the end, puts it into the queue.

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
from collections import Counter, deque
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

logger = logging.getLogger("sse_dashboard")

# ------------------------------------------------------------------------------------------------------- Settings ----

INTERVAL_SECONDS = 1.0  # between ticks: what a person still sees as live
HISTORY_SECONDS = 300.0  # held in memory: the page's longest window
MAX_HISTORY_TICKS = 20_000  # some 100 MB of history, computed within 3 s at the start
MAX_CLIENTS = 1000  # open connections of any kind: each costs a thread

RETRY_MS = 2000  # the reconnection time that clients are told...
RETRY_SPREAD_MS = 2000  # ... plus a random part, so that a restart is not met by all of them at once
HEARTBEAT_SECONDS = 15.0  # of silence, then a comment: WHATWG HTML advises it against proxies that give up
FUTURE_SECONDS = 60.0  # an ID further ahead of the clock comes from no other server of ours

QUEUE_FRAMES = 100  # that a client may be behind before it is disconnected
SEND_BUFFER_BYTES = 16 * 1024  # the kernel's share of a client's backlog: by default it hides hours of it
SEND_TIMEOUT_SECONDS = 10  # a peer that takes or acknowledges nothing for this long is gone
REPLAY_EVENTS = 64  # joined and written at a time when history is sent: some 10 KB
CLIENTS_AT_ONCE = 128  # woken by the generator before it lets them run: woken all at once, they queue for
REST_SECONDS = 0.0001  # ... the interpreter lock and are switched to twice; costs a third less, measured with 1,000

REQUEST_SECONDS = 10.0  # for a request to arrive whole, however slowly its bytes drip
RESPONSE_SECONDS = 60.0  # for a response that is no stream to be taken
LINGER_SECONDS = 2.0  # after a response, for the client to close first (RFC 9112, 9.6)
MAX_LINGERING = 256  # sockets that do so: beyond it the oldest is closed at once
DRAIN_READS = 64  # of 64 KiB, of what a client sends unasked, in one look: its end may stand behind it
WATCH_SECONDS = 0.5  # between two looks at all sockets: how soon a departure is noticed
ACCEPT_PAUSE_SECONDS = 0.1  # when there is no descriptor for a new connection
BACKLOG = 1024  # connections that wait to be accepted: a burst, not an overload
RETRY_AFTER_SECONDS = 5  # told to a client for whom there is no place

SIGNAL_SECONDS = 0.5  # between two looks of the main thread for a signal
JOIN_SECONDS = 0.2  # at the end, for a source that is still busy...
DRAIN_SECONDS = 0.8  # ... for the streams to write what is queued...
HANG_UP_SECONDS = 0.4  # ... and for the threads whose sockets were then cut to notice

# --------------------------------------------------------------------------------- Events: what can be said, as bytes ----

LEVELS = ("info", "success", "warning", "error")
to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def refuse_line_breaks(*texts: str) -> None:
    """Raises ValueError for what cannot be an event's type or ID."""
    if re.search(r"[\r\n\0]", "".join(texts)):
        raise ValueError("an event's type and ID are one line each, without NUL")


def encode(event_type: str, data: str, event_id: str = "") -> bytes:
    """The bytes of one event, with the empty line that ends it. Any thread; never blocks.

    The ID comes last: a client that takes an ID as it reads it cannot have that of an event which was cut short. Each
    line break of the data (CR LF, LF or CR, and no other: U+2028 is text) starts a new `data` field, as WHATWG HTML,
    "Parsing an event stream", asks. Raises ValueError for a type or an ID with a line break or NUL.
    """
    refuse_line_breaks(event_type, event_id)
    lines = [f"event: {event_type}", *(f"data: {line}" for line in re.split(r"\r\n|\r|\n", data))]
    if event_id:
        lines.append(f"id: {event_id}")
    return "\n".join([*lines, "\n"]).encode()


def timestamp(milliseconds: int) -> str:
    """Unix milliseconds as RFC 3339 writes them, in UTC."""
    seconds, rest = divmod(milliseconds, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"


@dataclass(frozen=True)
class Event:
    """Something to tell: an event type, and the fields of the JSON object that says it.

    What cannot be sent raises here, where the mistake is: ValueError for a type of several lines or a number that is
    not finite, TypeError for a value that JSON does not have. Publishing adds the timestamp and the ID.
    """

    type: str
    fields: Mapping[str, Any]
    json: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.type or {"type", "timestamp"} & set(self.fields):
            raise ValueError("an event has a type and fields; publishing adds `type` and `timestamp` to them")
        refuse_line_breaks(self.type)
        text = to_json({"type": self.type, **self.fields})
        text.encode()  # raises for half a surrogate pair
        object.__setattr__(self, "json", text)

    @property
    def topic(self) -> str:
        """What a filter asks for: a metric's name, an alert's level."""
        return str(self.fields.get("level" if self.type == "alert" else "name", ""))

    def encode(self, moment: str, event_id: str = "") -> bytes:
        """The event's bytes, with the timestamp and the ID that publishing gives it."""
        return encode(self.type, f'{self.json[:-1]}, "timestamp": "{moment}"}}', event_id)


def metric(name: str, value: float, unit: str = "") -> Event:
    """A reading. The page draws a card and a line for any name, with its unit ("%", "B/s", "°C").

    Raises TypeError or ValueError when the name is no text or empty, or the value no finite number.
    """
    if not isinstance(name, str) or not name or "," in name:
        raise ValueError(f"a metric's name is a text, not empty and without a comma; this is {name!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"the value of {name} is a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"the value of {name} is a finite number, not {value!r}")
    return Event("metric", {"name": name, "value": value, "unit": unit})


def alert(level: str, message: str, metric: str | None = None) -> Event:
    """Something that happened, and the name of the metric that caused it. Raises ValueError for an unknown level."""
    if level not in LEVELS:
        raise ValueError(f"an alert's level is one of {', '.join(LEVELS)}, not {level!r}")
    return Event("alert", {"level": level, "message": message} | ({"metric": metric} if metric else {}))


class Source(Protocol):
    """Where events come from: the simulation, or a program's own.

    One that has `replayable = True` promises that its events depend on the tick alone. The history is then filled from
    it at the start, and a client that resumes over a restart misses nothing.
    """

    def events_at(self, tick: int) -> Iterable[Event]:
        """The events of a tick (Unix milliseconds). Called in the generator thread, tick after tick."""


def is_replayable(source: Source) -> bool:
    return bool(getattr(source, "replayable", False))


# --------------------------------------------------------------------- Simulation: a machine as a function of time ----
# Every curve is a function of the seed and the time (seconds), and of nothing else.


@lru_cache(maxsize=16_384)
def chance(*key: object) -> float:
    """A number in [0, 1), fixed by its key: the same in every process, on every machine, in every Python."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") / 2**64


def wave(seed: int, name: str, period: float, at: float) -> float:
    """A smooth curve in [0, 1] that takes a new direction every `period` seconds."""
    slot, phase = divmod(at / period, 1)
    here, there = chance(seed, name, period, slot), chance(seed, name, period, slot + 1)
    return here + (there - here) * phase * phase * (3 - 2 * phase)


def burst(seed: int, name: str, period: float, at: float) -> float:
    """Mostly 0: once in `period` seconds it leaps, within two of them, to a random height up to 1, and fades."""
    height, newest = 0.0, at // period
    for slot in (newest - 1, newest):
        age = at - period * (slot + chance(seed, name, "start", slot))
        if age > 0:
            fade = period * (0.04 + 0.08 * chance(seed, name, "fade", slot))
            height += chance(seed, name, "peak", slot) ** 2 * (age / 2 if age < 2 else math.exp((2 - age) / fade))
    return min(1.0, height)


def sawtooth(seed: int, name: str, period: float, drop: float, low: float, high: float, at: float) -> float:
    """Climbs for `period` seconds from about `low` to about `high`, in the last part of them (`drop`) falls back."""
    slot, phase = divmod(at / period, 1)
    bottom, after = (low + 12 * chance(seed, name, "low", number) for number in (slot, slot + 1))
    top = high + 22 * chance(seed, name, "high", slot)
    if phase < 1 - drop:
        return bottom + (top - bottom) * phase / (1 - drop)
    return top + (after - top) * (phase - 1 + drop) / drop


def cpu(seed: int, at: float) -> float:
    return 4 + 40 * wave(seed, "cpu", 170, at) + 18 * wave(seed, "cpu", 41, at) + 62 * burst(seed, "cpu", 110, at)


@lru_cache(maxsize=2048)
def cpu_lately(seed: int, steps: int, slot: int) -> float:
    """The CPU of the last 10 x `steps` seconds as something slow feels it: an average that forgets."""
    weights = [math.pow(0.5, 2 * back / steps) for back in range(2 * steps)]
    past = (min(100.0, cpu(seed, 5.0 * (slot - back))) for back in range(2 * steps))
    return sum(weight * value for weight, value in zip(weights, past)) / sum(weights)


def lagging(seed: int, steps: int, at: float) -> float:
    """`cpu_lately` between its points, which lie five seconds apart."""
    slot, phase = divmod(at / 5, 1)
    return cpu_lately(seed, steps, int(slot) - 1) * (1 - phase) + cpu_lately(seed, steps, int(slot)) * phase


def memory(seed: int, at: float) -> float:
    climb = sawtooth(seed, "memory", 420, 0.03, 34, 62, at)
    return climb + 3 * wave(seed, "memory", 29, at) + 13 * burst(seed, "memory", 150, at)


def disk(seed: int, at: float) -> float:
    return sawtooth(seed, "disk", 1500, 0.02, 46, 72, at) + wave(seed, "disk", 60, at)


def network_in(seed: int, at: float) -> float:
    quiet = 30e3 + 150e3 * wave(seed, "in", 50, at) ** 2
    return (quiet + 9e6 * burst(seed, "in", 75, at)) * (0.75 + 0.5 * chance(seed, "in", at))


def network_out(seed: int, at: float) -> float:
    quiet = 15e3 + 90e3 * wave(seed, "out", 65, at) ** 2
    bursts = 5e6 * burst(seed, "out", 120, at) + 0.6e6 * burst(seed, "in", 75, at)
    return (quiet + bursts) * (0.75 + 0.5 * chance(seed, "out", at))


def temperature(seed: int, at: float) -> float:
    return 35 + 0.52 * lagging(seed, 12, at) + 4 * wave(seed, "room", 400, at) + 0.6 * chance(seed, "warmth", at)


def load(seed: int, at: float) -> float:
    """Of four cores, and now and then of some processes that wait for the disk."""
    waiting = sum(burst(seed, "waiting", 310, at - back) for back in range(0, 30, 3)) / 10
    return 4.6 * lagging(seed, 8, at) / 100 + 3 * waiting + 0.05 * chance(seed, "load", at)


class Threshold(NamedTuple):
    """A reading that reaches `at` is a case for `level`, until it falls below `clear`: the band stops flapping."""

    level: str
    at: float
    clear: float


class Reading(NamedTuple):
    """A metric of the simulated machine: its curve, and how it is told."""

    curve: Callable[[int, float], float]
    label: str
    unit: str
    digits: int  # after the decimal point
    low: float
    high: float
    thresholds: tuple[Threshold, ...] = ()


READINGS = {
    "cpu_usage": Reading(
        lambda seed, at: cpu(seed, at) + 5 * chance(seed, "cpu", at) - 2.5,
        "CPU usage", "%", 1, 0, 100, (Threshold("warning", 85, 70), Threshold("error", 95, 82))),
    "memory_usage": Reading(
        memory, "Memory usage", "%", 1, 0, 100, (Threshold("warning", 85, 78), Threshold("error", 95, 88))),
    "disk_usage": Reading(disk, "Disk usage", "%", 1, 0, 100, (Threshold("warning", 85, 80), Threshold("error", 95, 90))),
    "network_in": Reading(network_in, "Incoming traffic", "B/s", 0, 0, 125e6),
    "network_out": Reading(network_out, "Outgoing traffic", "B/s", 0, 0, 125e6),
    "temperature": Reading(
        temperature, "Temperature", "°C", 1, 20, 105, (Threshold("warning", 75, 68), Threshold("error", 85, 78))),
    "load_average": Reading(load, "Load average", "", 2, 0, 64, (Threshold("warning", 4, 3), Threshold("error", 6, 4.5))),
}

# One of each level falls into every stretch of so many seconds: some two a minute, every level within ten minutes.
SYSTEM_EVENTS = {
    "info": (80, ("Service restarted: web", "Configuration reloaded", "Log files rotated", "New sign-in: operator",
                  "Scheduled task started: report", "Package list refreshed")),
    "success": (140, ("Backup finished", "Deployment completed", "Health check passed", "Certificate renewed")),
    "warning": (200, ("Slow response from the database", "Certificate expires in 14 days", "Clock drift corrected",
                      "Three failed sign-ins from one address", "Queue of outgoing mail is growing")),
    "error": (290, ("Health check failed: cache", "Backup target not reachable", "Worker process crashed and restarted",
                    "Connection to the message broker lost")),
}
ANCHOR_MS = 600_000  # the state of a threshold is traced back no further than to a multiple of this


@lru_cache(maxsize=1024)
def value_at(seed: int, name: str, tick: int) -> float:
    """The reading of a metric: finite, rounded, inside its range."""
    kind = READINGS[name]
    return round(min(kind.high, max(kind.low, kind.curve(seed, tick / 1000))), kind.digits or None)


class Simulation:
    """A machine whose events at a tick depend on the seed, the interval and the tick, on nothing that was before.

    So a restarted server continues the same curves under the same IDs. It has caches but no state: any tick can be
    asked for at any time, with the same answer. The generator thread alone calls it.
    """

    replayable = True

    def __init__(self, seed: int = 0, interval: float = INTERVAL_SECONDS) -> None:
        """`interval` in seconds."""
        self.seed = seed
        self.interval_ms = round(interval * 1000)
        self._traced: dict[tuple[str, str], tuple[int, bool]] = {}  # (metric, level) -> (tick, what is_high() said)

    def events_at(self, tick: int) -> list[Event]:
        """A metric event for each of READINGS, in their order, then the alerts of the tick."""
        values = {name: value_at(self.seed, name, tick) for name in READINGS}
        metrics = [metric(name, value, READINGS[name].unit) for name, value in values.items()]
        crossed = (self._threshold_alerts(name, tick, value) for name, value in values.items())
        return [*metrics, *chain.from_iterable(crossed), *self._system_alerts(tick)]

    def is_high(self, name: str, threshold: Threshold, tick: int) -> bool:
        """Whether the threshold counts as crossed. The last reading outside the band from `clear` to `at` decides.

        A reading inside the band leaves it as it was a tick before, but for one at a multiple of ANCHOR_MS, where the
        nearer edge decides. So the search ends, and as it does in a process that has seen all the ticks before.
        """
        known, answer = self._traced.get((name, threshold.level), (None, False))
        moment = tick
        while moment != known:
            value, anchor = value_at(self.seed, name, moment), moment % ANCHOR_MS < self.interval_ms
            if anchor or not threshold.clear <= value < threshold.at:
                answer = value >= ((threshold.clear + threshold.at) / 2 if anchor else threshold.at)
                break
            moment -= self.interval_ms
        self._traced[name, threshold.level] = (tick, answer)
        return answer

    def _threshold_alerts(self, name: str, tick: int, value: float) -> Iterator[Event]:
        kind = READINGS[name]
        before, after = (sum(self.is_high(name, threshold, moment) for threshold in kind.thresholds)
                         for moment in (tick - self.interval_ms, tick))
        shown = f"{value:.{kind.digits}f} {kind.unit}".rstrip()
        what = kind.label if kind.label.startswith("CPU") else kind.label.lower()
        if after > before:
            word = ("High", "Critical")[after - 1]
            yield alert(kind.thresholds[after - 1].level, f"{word} {what} detected: {shown}", name)
        elif before and not after:
            yield alert("success", f"{kind.label} back to normal: {shown}", name)

    def _system_alerts(self, tick: int) -> Iterator[Event]:
        before = tick - self.interval_ms
        for level, (seconds, messages) in SYSTEM_EVENTS.items():
            for slot in range(before // (seconds * 1000), tick // (seconds * 1000) + 1):
                if before < int((slot + chance(self.seed, level, "moment", slot)) * seconds * 1000) <= tick:
                    yield alert(level, messages[int(chance(self.seed, level, "which", slot) * len(messages))])


# --------------------------------------------------------------------------------- Subscription: one client's queue ----

EventID = tuple[int, int]  # the tick and the number within it, compared by order


class Entry(NamedTuple):
    """An event that was published."""

    id: EventID
    type: str
    topic: str
    wire: bytes


@dataclass(frozen=True)
class Filter:
    """What a client wants to see. Clients with equal filters share every frame."""

    types: frozenset[str] | None = None  # of events; None: all, and this server's `status` with them
    names: frozenset[str] = frozenset()  # of metrics; empty: all
    levels: frozenset[str] = frozenset()  # of alerts; empty: all
    after: EventID = (0, 0)  # later events only: for a client that comes from a server whose clock is ahead of ours

    def passes(self, entry: Entry) -> bool:
        if entry.id <= self.after or (self.types is not None and entry.type not in self.types):
            return False
        wanted = self.names if entry.type == "metric" else self.levels if entry.type == "alert" else None
        return not wanted or entry.topic in wanted


class Mailbox(queue.Queue["bytes | None"]):
    """A queue.Queue for writers that never wait and one reader that always does: it sleeps on a lock of its own.

    The three conditions of the base class, made for many of both, would cost a fifth of the CPU for each frame, and
    3 KiB a client.
    """

    def __init__(self, maxsize: int) -> None:
        self.maxsize, self.mutex = maxsize, threading.Lock()
        self.queue: deque[bytes | None] = deque()
        self._bell = threading.Lock()  # held until a writer releases it: there may be something to read
        self._bell.acquire()

    def put_nowait(self, item: bytes | None) -> None:
        with self.mutex:
            if len(self.queue) >= self.maxsize:
                raise queue.Full
            self.queue.append(item)
            if self._bell.locked():
                self._bell.release()

    def get(self) -> bytes | None:  # type: ignore[override]
        while not self.queue:
            self._bell.acquire()
        return self.queue.popleft()


class Subscription:
    """One client's place in the broadcast: a bounded queue of frames, and how it came to an end.

    Any thread may call `offer` and `end`, which never block; `frames` belongs to the client's thread, and blocks it.
    """

    def __init__(self, hang_up: Callable[[], None]) -> None:
        """`hang_up` cuts the client's connection, from any thread, without blocking."""
        self.opening: Iterator[bytes] = iter(())  # the frames that come before the live ones
        self.reason = ""  # why it ended, once it has
        self._hang_up = hang_up
        self._queue = Mailbox(QUEUE_FRAMES)

    def offer(self, frame: bytes) -> None:
        """Queues a frame. A client whose queue is full is too slow: it is cut, and may resume by its last event ID."""
        try:
            self._queue.put_nowait(frame)
        except queue.Full:
            self.end("slow")

    def end(self, reason: str) -> None:
        """Ends the stream behind the frames that are queued. Of several reasons the first stays."""
        if not self.reason:
            self.reason = reason
            try:
                self._queue.put_nowait(None)
            except queue.Full:  # its thread does not get to the end: it is stuck in a write
                self._hang_up()

    def frames(self) -> Iterator[bytes]:
        """What to write, in order, until the end; blocks while there is nothing."""
        yield from self.opening
        while (frame := self._queue.get()) is not None:
            yield frame


# ----------------------------------------------------------------- Broadcaster: event IDs, history, fan-out, resume ----


class Audience:
    """The subscriptions that share a filter. The broadcaster's lock guards it."""

    def __init__(self) -> None:
        self.members: set[Subscription] = set()
        self.heard_at = time.monotonic()  # when it was last sent something


class Broadcaster:
    """Gives every event its ID, holds the history, and hands every event to all whose filter it passes.

    Any thread may call any method; none blocks, but for the time that another holds the lock.
    """

    def __init__(self, interval: float = INTERVAL_SECONDS, history: float = HISTORY_SECONDS) -> None:
        """Both in seconds."""
        self.interval_ms, self.history_ms = round(interval * 1000), round(history * 1000)
        self.metric_names: dict[str, None] = {}  # in order, those published so far: what a filter may ask for
        self.events_published = 0
        self._started_at = time.monotonic()
        # Guards everything below. Publishing offers while it holds this, which is safe because offer() never blocks.
        self._lock = threading.Lock()
        self._history: list[tuple[Entry, ...]] = []  # batches, ordered by ID
        self._last: EventID = (0, 0)  # the newest ID; (tick, 0) after a tick without events
        self._gone: EventID = (0, 0)  # what came up to this ID is no longer held, or never was
        self._audiences: dict[Filter, Audience] = {}
        self._closed = False

    def advance(self, ticks: Iterable[tuple[int, Iterable[Event]]], live: bool = True) -> None:
        """Publishes the events of one or more ticks, as one frame. If not `live`, only remembers them, as history."""
        with self._lock:
            entries = [entry for tick, events in ticks for entry in self._remember(tick, 1, events)]
            if live:
                self._fan_out(entries, self._status(self._last[0]))

    def publish(self, event: Event) -> None:
        """Publishes one event at once, between two ticks. Raises TypeError for anything else, RuntimeError after the end."""
        if not isinstance(event, Event):
            raise TypeError(f"publish() takes an event, as metric() and alert() make it, not {event!r}")
        with self._lock:
            if self._closed or not self._last[0]:
                raise RuntimeError(f"the server has {'ended' if self._closed else 'not begun'}: nobody is there to hear of it")
            tick, number = self._last
            # Counted by the milliseconds since the tick, so that a restart in between does not give a number again.
            self._fan_out(self._remember(tick, max(number + 1, min(now_ms() - tick, self.interval_ms)), [event]), b"")

    def skip_to(self, tick: int) -> None:
        """Forgets all before a tick and ends every stream: each client comes back by its ID and is told of the gap."""
        with self._lock:
            self._history.clear()
            self._gone = self._last = (tick, 0)
            self._end_all("lapsed")

    def heartbeat(self) -> None:
        """Sends a comment to those who heard nothing for HEARTBEAT_SECONDS. Proxies see life, dead peers are found."""
        with self._lock:
            silent_since = time.monotonic() - HEARTBEAT_SECONDS
            self._send({one: b":\n\n" for one in self._audiences.values() if one.heard_at <= silent_since})

    def close(self) -> None:
        """Ends every stream, and each that is yet to come."""
        with self._lock:
            self._closed = True
            self._end_all("shutdown")

    @contextmanager
    def subscribe(
        self,
        wanted: Filter = Filter(),
        last_event_id: str | None = None,
        history: float | None = None,
        hang_up: Callable[[], None] = lambda: None,
    ) -> Iterator[Subscription]:
        """A subscription for the length of a `with` block.

        It begins with the reconnection time. Then come exactly the events after the last event ID; without one, those
        of the last `history` seconds; without either, those of the newest tick. An ID that is older than what is held,
        or that no server can have sent, is answered by a `reset` event and all that is held.
        """
        subscription = Subscription(hang_up)
        with self._lock:
            reset, after = self._position(last_event_id, history)
            missed = self._history[bisect_right(self._history, after, key=lambda batch: batch[-1].id) :]
            opening = f"retry: {RETRY_MS + random.randrange(RETRY_SPREAD_MS + 1)}\n\n".encode()
            if reset:
                opening += Event("reset", {"reason": reset}).encode(timestamp(now_ms()))
            audience = self._audiences.setdefault(
                replace(wanted, after=after) if after > self._last else wanted, Audience())
            audience.members.add(subscription)
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
                self._audiences = {wanted: one for wanted, one in self._audiences.items() if one.members}

    @property
    def connections(self) -> int:
        """How many event streams are open."""
        return sum(len(audience.members) for audience in list(self._audiences.values()))

    @property
    def last_event_id(self) -> str:
        return "-".join(map(str, self._history[-1][-1].id)) if self._history else ""

    @property
    def uptime_seconds(self) -> float:
        return round(time.monotonic() - self._started_at, 1)

    # What follows is called with the lock held.

    def _remember(self, tick: int, number: int, events: Iterable[Event]) -> tuple[Entry, ...]:
        """The entries of a new batch, numbered from `number`; forgets what is older than the history."""
        if not self._last[0]:
            self._gone = (tick, 0)
        moment = timestamp(tick)
        batch = tuple(Entry((tick, n), event.type, event.topic, event.encode(moment, f"{tick}-{n}"))
                      for n, event in enumerate(events, number))
        self._last = batch[-1].id if batch else (tick, 0)
        if batch:
            self._history.append(batch)
            self.metric_names |= dict.fromkeys(entry.topic for entry in batch if entry.type == "metric")
        # Even without a history the newest tick is held: it is what a new client sees first.
        if expired := bisect_right(self._history, tick - max(self.history_ms, 1), key=lambda batch: batch[0].id[0]):
            self._gone = self._history[expired - 1][-1].id
            del self._history[:expired]
        return batch

    def _fan_out(self, entries: Sequence[Entry], status: bytes) -> None:
        """Sends each audience its frame, made once; an audience whose filter raises misses it."""
        self.events_published += len(entries)
        frames: dict[Audience, bytes] = {}
        for wanted, audience in self._audiences.items():
            try:
                frames[audience] = b"".join([entry.wire for entry in entries if wanted.passes(entry)])
            except Exception:
                logger.exception("%r raised: its subscribers miss %d events", wanted, len(entries))
                continue
            if wanted.types is None:
                frames[audience] += status
        self._send(frames)

    def _send(self, frames: Mapping[Audience, bytes]) -> None:
        offered = 0
        for audience, frame in frames.items():
            if frame:
                audience.heard_at = time.monotonic()
                for subscription in audience.members:
                    subscription.offer(frame)
                    offered += 1
                    if offered % CLIENTS_AT_ONCE == 0:
                        time.sleep(REST_SECONDS)

    def _end_all(self, reason: str) -> None:
        for audience in self._audiences.values():
            for subscription in audience.members:
                subscription.end(reason)

    def _position(self, last_event_id: str | None, history: float | None) -> tuple[str, EventID]:
        """Why a client must start over ("" if it need not), and the ID after which its events begin."""
        if last_event_id is not None:
            found = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", last_event_id)
            after = (int(found[1]), int(found[2])) if found else None
            if after is None or after[0] > max(now_ms(), self._last[0]) + FUTURE_SECONDS * 1000:
                return "unknown", self._gone
            return ("expired", self._gone) if after < self._gone else ("", after)
        if history is not None:
            return "", min(self._last, (self._last[0] - round(history * 1000), sys.maxsize))
        return "", (self._last[0], 0)

    def _status(self, milliseconds: int) -> bytes:
        fields = {"uptime_seconds": self.uptime_seconds, "connections": self.connections,
                  "interval_seconds": self.interval_ms / 1000}
        return Event("status", fields).encode(timestamp(milliseconds))


def replay(batches: Iterable[Iterable[Entry]], wanted: Filter) -> Iterator[bytes]:
    """History as frames, joined a handful of events at a time while they are written: it is shared, not copied."""
    passing = (entry.wire for batch in batches for entry in batch if wanted.passes(entry))
    while frame := b"".join(islice(passing, REPLAY_EVENTS)):
        yield frame


def now_ms() -> int:
    return int(time.time() * 1000)


# ------------------------------------------------------------------------------------------ Generator thread: time ----


class Generator:
    """Publishes the events of all sources at every tick, in its own thread, for the length of a `with` block.

    Entering fills the history from the replayable sources, and starts the thread. A source that raises is logged, and
    its events of that tick are left out. Ticks that are late, after a pause of the process or a nap of the laptop, are
    made up for as far back as history goes; after a longer one every client is told to start over.
    """

    def __init__(self, broadcaster: Broadcaster, sources: Iterable[Source]) -> None:
        # The replayable first: so their events have the same numbers when history is filled from them alone.
        self._sources = sorted(sources, key=is_replayable, reverse=True)
        self._replayable = [source for source in self._sources if is_replayable(source)]
        self._broadcaster = broadcaster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._set_at, self._steady_at = time.time(), time.monotonic()
        self._next = 0

    def __enter__(self) -> Generator:
        interval = self._broadcaster.interval_ms
        newest = self.now_ms() // interval * interval
        oldest = newest - max(0, self._broadcaster.history_ms - 1) // interval * interval
        ticks = range(oldest, newest + interval, interval)
        self._broadcaster.advance([(tick, self._events(self._replayable, tick)) for tick in ticks], live=False)
        self._next = newest + interval
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def now_ms(self) -> int:
        """The time of day, but never going back: when the clock is set back, time runs on from where it was."""
        wall, steady = time.time(), self._set_at + time.monotonic() - self._steady_at
        if wall > steady:
            self._set_at, self._steady_at = wall, time.monotonic()
        return int(max(wall, steady) * 1000)

    def _run(self) -> None:
        # A second at most: the wall clock may be set forward meanwhile.
        while not self._stop.wait(max(0, min(1000, self._next - self.now_ms())) / 1000):
            try:
                self._publish_due()
            except Exception:
                logger.exception("a tick could not be published")

    def _publish_due(self) -> None:
        now, interval = self.now_ms(), self._broadcaster.interval_ms
        oldest = now - max(self._broadcaster.history_ms, 60_000)
        if self._next < oldest:
            self._next = oldest // interval * interval + interval
            self._broadcaster.skip_to(self._next)
        if due := range(self._next, now + 1, interval):
            self._next = due[-1] + interval
            late = [(tick, self._events(self._replayable, tick)) for tick in due[:-1]]
            self._broadcaster.advance([*late, (due[-1], self._events(self._sources, due[-1]))])

    def _events(self, sources: Iterable[Source], tick: int) -> list[Event]:
        events: list[Event] = []
        for source in sources:
            try:
                found = list(source.events_at(tick))
                if strangers := [event for event in found if not isinstance(event, Event)]:
                    raise TypeError(f"a source gives events, as metric() and alert() make them, not {strangers[0]!r}")
                events += found
            except BaseException:  # SystemExit too: a source does not decide about the server's life
                logger.exception("%r raised at tick %d: its events are left out", source, tick)
        return events


# ------------------------------------------------------------------------------------------- Handler: one request ----

STREAMS: dict[str, frozenset[str] | None] = {
    "/api/events/metrics": frozenset({"metric"}),
    "/api/events/alerts": frozenset({"alert"}),
    "/api/events/all": None,
}
ROUTES = ("/", "/api/status", *STREAMS)
METHODS = ("GET", "HEAD", "OPTIONS")
ALLOWED = ", ".join(METHODS)
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
PUBLIC = {"Access-Control-Allow-Origin": "*"}  # a page of any origin may read the data
PROBLEMS = {
    HTTPStatus.BAD_REQUEST: "This is no request as HTTP/1.1 has it.",
    HTTPStatus.REQUEST_URI_TOO_LONG: "The request line is longer than 64 KiB.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "There are more than 100 header fields, or one is longer than 64 KiB.",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED: "This server speaks HTTP/1.0 and HTTP/1.1.",
}


class BadRequest(ValueError):
    """A request that is answered by 400, with this text."""


class Page(NamedTuple):
    """The page and the headers it is served with."""

    body: bytes
    headers: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> Page:
        """Reads the page, and allows each script and style in it by its hash, and nothing else. Raises OSError."""
        body = path.read_bytes()
        policy = ("default-src 'none'; connect-src 'self'; img-src data:; "
                  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        for tag in ("script", "style"):
            texts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>".encode(), body, re.DOTALL)
            hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in texts]
            policy += f"; {tag}-src " + (" ".join(f"'sha256-{value}'" for value in hashes) or "'none'")
        return cls(body, {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        } | NOSNIFF)


class Handler(BaseHTTPRequestHandler):
    """Answers the one request of a connection, in that connection's thread. It has no state of its own."""

    server: DashboardServer
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that an answer to garbage has a status line

    def __getattr__(self, name: str) -> Callable[[], None]:
        """The base class looks for a method `do_<METHOD>`: here all of them go the same way."""
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
                    "Allow": ALLOWED,
                    "Access-Control-Allow-Methods": ALLOWED,
                    "Access-Control-Allow-Headers": "Last-Event-ID, Cache-Control",
                } | ({} if path == "/" else PUBLIC))
            elif self.command not in METHODS:
                self.send_problem(HTTPStatus.METHOD_NOT_ALLOWED, f"The methods here are {ALLOWED}.", {"Allow": ALLOWED})
            elif path == "/":
                self.send_page(self.server.page)
            elif path == "/api/status":
                self.send_json(HTTPStatus.OK, self.server.status(), {"Cache-Control": "no-store"})
            else:
                self.send_stream(path, query)
        except BadRequest as problem:
            self.send_problem(HTTPStatus.BAD_REQUEST, str(problem))

    def target(self) -> tuple[str, dict[str, list[str]]]:
        """The path and the query, of a target in origin or absolute form (RFC 9112, 3.2). Raises BadRequest."""
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"  # or the answer would have no status line
            raise BadRequest("This server speaks HTTP/1.0 and HTTP/1.1.")
        fields = self.headers.items()
        if self.headers.defects or any(name != name.strip() or re.search(r"[\0\r\n]", value) for name, value in fields):
            raise BadRequest("A header field is one line: a name, a colon, a value.")
        if self.request_version != "HTTP/1.0" and len(self.headers.get_all("Host", [])) != 1:
            raise BadRequest("A request has exactly one Host header field.")
        path, _, query = self.path.partition("?")
        if path == "*" and self.command == "OPTIONS":
            path = "/"
        try:
            if not path.startswith("/"):
                scheme, _, path, query, _ = urlsplit(self.path)
                if scheme not in ("http", "https"):
                    raise ValueError
        except ValueError:
            raise BadRequest("The target of a request is a path of this server.") from None
        return unquote(path or "/"), parse_qs(query, keep_blank_values=True)

    def send_page(self, page: Page) -> None:
        known = re.findall(r'"[^"]*"|\*', self.headers.get("If-None-Match", ""))
        if page.headers["ETag"] in known or "*" in known:
            self.respond(HTTPStatus.NOT_MODIFIED, page.headers)
        else:
            self.respond(HTTPStatus.OK, page.headers, page.body)

    def send_stream(self, path: str, query: Mapping[str, list[str]]) -> None:
        """Streams events until the client leaves or the server ends it. Raises BadRequest, but sends nothing then."""
        names = self.server.broadcaster.metric_names if self.server.names_are_known else None
        wanted = Filter(STREAMS[path], self.choice(query, "name", names), self.choice(query, "level", LEVELS))
        history = query.get("history", [""])[-1]
        if history and not re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", history):
            raise BadRequest("The parameter history is a number of seconds.")
        last_event_id = self.headers.get("Last-Event-ID", "").strip(" \t") or query.get("lastEventId", [""])[-1]
        if re.search(r"[\0-\x1f\x7f]", last_event_id):
            raise BadRequest("An event ID has no control characters.")
        self.send_headers(HTTPStatus.OK, {
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store, no-transform",
            "X-Accel-Buffering": "no",
        } | NOSNIFF | PUBLIC)
        if self.command == "HEAD":
            return
        # A stream may last for days; what only its request needed goes now: 5 of 32 KiB a client.
        self.rfile.close()
        self.rfile = self.wfile  # for finish(), which closes it again
        del self.headers, self.requestline, self.raw_requestline, self.path
        self.server.stream(self.connection, self.connection.sendall, self.client_address[0], path,
                           wanted, last_event_id or None, float(history) if history else None)

    def choice(self, query: Mapping[str, list[str]], key: str, allowed: Iterable[str] | None) -> frozenset[str]:
        """The values of a filter, given several times or with commas. Raises BadRequest for one that is not allowed."""
        values = frozenset(value for text in query.get(key, ()) for value in text.split(",") if value)
        if allowed is not None and not values <= set(allowed):
            raise BadRequest(f"The parameter {key} is one or more of {', '.join(allowed)}.")
        return values

    def send_headers(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def respond(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes | None = None) -> None:
        """A whole answer. HEAD gets the same headers and no body (RFC 9110, 9.3.2)."""
        self.send_headers(status, {**headers, **({} if body is None else {"Content-Length": str(len(body))})})
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, status: HTTPStatus, value: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.respond(status, {"Content-Type": "application/json", **NOSNIFF, **PUBLIC, **headers}, body)

    def send_problem(self, status: HTTPStatus, sentence: str, headers: Mapping[str, str] = {}) -> None:
        self.send_json(status, {"error": sentence}, headers)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class calls for a request that it cannot parse. Its message quotes the client; ours does not."""
        self.send_problem(HTTPStatus(code), PROBLEMS.get(HTTPStatus(code), HTTPStatus(code).phrase))

    def handle_expect_100(self) -> bool:
        return True  # no body is wanted: the final answer comes at once

    def version_string(self) -> str:
        return "sse-dashboard"

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("%s %s", self.client_address[0], (format % args).encode("unicode_escape").decode())


# ---------------------------------------------------------------------------------- Server: sockets and lifetimes ----

# Set on the listening socket, and inherited by those it accepts. An option that the system lacks is left out.
SOCKET_OPTIONS = (
    ("IPPROTO_TCP", "TCP_NODELAY", 1),  # a frame is one write: there is nothing to wait for
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT", SEND_TIMEOUT_SECONDS * 1000),  # for a peer that vanished without a word
    ("SOL_SOCKET", "SO_SNDTIMEO", struct.pack("@ll", SEND_TIMEOUT_SECONDS, 0)),  # settimeout() would poll before a write
    ("SOL_SOCKET", "SO_SNDBUF", SEND_BUFFER_BYTES),
)
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SPARE_DESCRIPTORS = 64  # for what is no client: files, the listening socket, the selector
REASONS = ("closed", "slow", "stalled", "refused", "lapsed", "failed", "shutdown")
REFUSAL_BODY = b'{"error": "There is no place for another connection; try again later."}\n'
REFUSAL = (b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\n"
           b"Retry-After: %d\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
           % (RETRY_AFTER_SECONDS, len(REFUSAL_BODY), REFUSAL_BODY))


def hang_up(connection: socket.socket) -> None:
    """Cuts a connection: whichever thread reads or writes it comes back at once, and closes it. Any thread."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def is_open(connection: socket.socket) -> bool:
    """Throws away what a readable socket has received; False when the peer has closed. Never blocks."""
    try:
        flag = getattr(socket, "MSG_DONTWAIT", 0)  # where it is missing, a second read could block
        return all(connection.recv(65536, flag) for _ in range(DRAIN_READS if flag else 1))
    except BlockingIOError:
        return True
    except OSError:
        return False


class DashboardServer(ThreadingHTTPServer):
    """The dashboard. Entering its `with` block serves; leaving it ends every stream in order, within two seconds.

        with DashboardServer(sources=[Simulation(), MySource()]) as server:
            server.publish(alert("info", "Hello"))
            server.wait()

    The constructor takes the port; it raises OSError when it cannot, or when index.html is missing. Override
    `stream_opened` and `stream_closed` to see clients come and go.
    """

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
    ) -> None:
        """`interval` and `history` in seconds. Without `sources` it shows the simulation; port 0 is any free one."""
        self.page = Page.load(Path(__file__).with_name("index.html"))
        self.broadcaster = Broadcaster(interval, history)
        self.sources = [Simulation(interval=interval)] if sources is None else list(sources)
        # Of a source that is not replayable nobody knows the names before it speaks; a 400 would stop a browser for good.
        self.names_are_known = all(map(is_replayable, self.sources))
        self.max_clients = max_clients
        # Guards the books below; notified when a connection is done.
        self._books = threading.Condition()
        self._deadlines: dict[socket.socket, float] = {}  # of every open connection: when it must be done
        self._lingering: dict[socket.socket, float] = {}  # done, until the client closes too, or this moment
        self._watched = selectors.DefaultSelector()  # streams and lingering sockets: readable when the peer closes
        self._ended = Counter(dict.fromkeys(REASONS, 0))
        self._watch_at = 0.0
        self._starved = False
        self._down = threading.Event()
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        super().__init__((str(address[0]), int(address[1])), Handler)

    def server_bind(self) -> None:
        """Takes the port, without the base class's look-up of the host's full name, which can last half a minute."""
        if self.address_family == socket.AF_INET6:  # `::` is for IPv4 too
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
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.server_name, self.server_name)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def generator(self) -> AbstractContextManager[object]:
        """What makes time pass while the server runs; a test overrides it, to publish ticks by hand."""
        return Generator(self.broadcaster, self.sources)

    def __enter__(self) -> DashboardServer:
        raise_descriptor_limit(self.max_clients + MAX_LINGERING + SPARE_DESCRIPTORS)
        self._generator = self.generator()
        self._generator.__enter__()
        threading.Thread(target=self._serve, name="serve", daemon=True).start()
        return self

    def _serve(self) -> None:
        # A thread of this policy does not push aside the thread that wakes it, and the clients' threads inherit it. So
        # the generator fills many queues in one go, instead of losing the processor at each: costs a third less.
        with suppress(AttributeError, OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self.serve_forever(WATCH_SECONDS)

    def wait(self) -> None:
        """Blocks until the server has ended, or a signal's exception comes up in the main thread."""
        # Python runs a signal's handler between two of its own steps. One that comes just before a wait without end would
        # not be seen before the next.
        while not self._down.wait(SIGNAL_SECONDS):
            pass

    def publish(self, event: Event) -> None:
        """Publishes one event at once, from any thread, without blocking. Raises RuntimeError after the end."""
        self.broadcaster.publish(event)

    def __exit__(self, *_: object) -> None:
        """The one way down: no more ticks, no more clients, every stream to its end, and then whoever is left is cut."""
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

    def server_close(self) -> None:
        """Closes what is still open. Called by the base class, too, when it cannot take the port."""
        super().server_close()
        with self._books:
            self._down.set()
            for connection in self._lingering:
                connection.close()
            self._watched.close()

    # The life of a connection: get_request, process_request, request_arrived, perhaps stream, shutdown_request.

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection. Without a descriptor for it, waits a little: serve_forever() would try again at once."""
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
        """Starts a thread for the connection. When the house is full it is refused at once, and nobody is evicted."""
        with self._books:
            admitted = len(self._deadlines) < self.max_clients
            if admitted:
                self._deadlines[request] = time.monotonic() + REQUEST_SECONDS
            else:
                self._ended["refused"] += 1
        if admitted:
            # Not a threading.Thread: its object costs 3 of 28 KiB a client, and its start() waits for the new thread.
            _thread.start_new_thread(self.process_request_thread, (request, client_address))
        else:
            with suppress(OSError):
                request.sendall(REFUSAL)
            self.shutdown_request(request)

    def request_arrived(self, connection: socket.socket) -> None:
        """The request is whole; from now on its response has a deadline."""
        with self._books:
            self._deadlines[connection] = time.monotonic() + RESPONSE_SECONDS

    def stream(
        self,
        connection: socket.socket,
        write: Callable[[bytes], Any],
        address: str,
        path: str,
        wanted: Filter,
        last_event_id: str | None,
        history: float | None,
    ) -> None:
        """Writes a client's frames until its stream ends; says how it ended. Called in, and blocks, the client's thread."""
        started_at, events = time.monotonic(), 0
        with self.broadcaster.subscribe(wanted, last_event_id, history, partial(hang_up, connection)) as subscription:
            with self._books:
                self._deadlines[connection] = math.inf
                if not self._down.is_set():  # a thread that was cut at the end may still come by
                    self._watched.register(connection, selectors.EVENT_READ, subscription)
            try:
                self.stream_opened(address, path)
                for frame in subscription.frames():
                    write(frame)
                    events += frame.count(b"\ndata: ")
            except OSError as problem:
                subscription.end("stalled" if isinstance(problem, (BlockingIOError, TimeoutError)) else "closed")
            except BaseException:
                subscription.end("failed")
                raise
            finally:
                with self._books:
                    with suppress(KeyError, ValueError):  # not watched any more: the client went first, or all is closed
                        self._watched.unregister(connection)
                    self._ended[subscription.reason] += 1
                self.stream_closed(address, path, subscription.reason, time.monotonic() - started_at, events)

    def shutdown_request(self, request: Any) -> None:
        """Closes in two steps (RFC 9112, 9.6): with unread input, a plain close would take the response with it.

        The connection gives up its place now; its socket is watched until the client closes too.
        """
        try:
            request.setblocking(False)
            request.shutdown(socket.SHUT_WR)
            lingers = is_open(request)
        except OSError:
            lingers = False
        with self._books:
            if lingers and not self._down.is_set():
                self._lingering[request] = time.monotonic() + LINGER_SECONDS
                self._watched.register(request, selectors.EVENT_READ)
                if len(self._lingering) > MAX_LINGERING:
                    self._let_go(next(iter(self._lingering)))
            else:
                request.close()
            self._deadlines.pop(request, None)
            self._books.notify_all()

    def service_actions(self) -> None:
        """Looks after all streams and sockets. Called by serve_forever() at least every WATCH_SECONDS; never blocks."""
        now = time.monotonic()
        if now < self._watch_at:
            return
        self._watch_at = now + WATCH_SECONDS
        self.broadcaster.heartbeat()  # from here, not from the generator: a source may block that one
        with self._books:
            for key, _ in self._watched.select(0):
                connection: Any = key.fileobj
                if not is_open(connection):
                    if key.data is None:
                        self._let_go(connection)
                    else:
                        key.data.end("closed")
                        hang_up(connection)
                        self._watched.unregister(connection)
            for connection in [late for late, deadline in self._lingering.items() if deadline < now]:
                self._let_go(connection)
            for connection in [late for late, deadline in self._deadlines.items() if deadline < now]:
                hang_up(connection)

    def _let_go(self, connection: socket.socket) -> None:
        del self._lingering[connection]
        self._watched.unregister(connection)
        connection.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A departure is no error; anything else is logged with its traceback."""
        if not isinstance(sys.exc_info()[1], OSError):
            logger.exception("a request of %s failed", client_address[0])

    def stream_opened(self, address: str, path: str) -> None:
        """A hook: a client's stream begins. Called in the client's thread."""

    def stream_closed(self, address: str, path: str, reason: str, seconds: float, events: int) -> None:
        """A hook: a client's stream has ended, for one of REASONS. Called in the client's thread."""
        logger.debug("%s %s ended after %.1f s and %d events: %s", address, path, seconds, events, reason)

    def status(self) -> dict[str, Any]:
        """The snapshot at /api/status."""
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


def raise_descriptor_limit(needed: int) -> None:
    """Lets this process open `needed` descriptors, or as many as the system allows it."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if soft != resource.RLIM_INFINITY and soft < allowed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


# --------------------------------------------------------------------------------------------------- Command line ----


def number(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number within a range."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            value = kind(text)
            if low <= value <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'} from {low} to {high}")

    return parse


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A live dashboard over Server-Sent Events.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address or name to listen on, IPv4 or IPv6")
    add("--port", type=number(int, 0, 65535), default=8000, help="0 picks a free one")
    add("--interval", type=number(float, 0.05, 60), default=INTERVAL_SECONDS, help="seconds between ticks, 0.05 to 60")
    add("--seed", type=int, default=0, help="of the simulation: the same seed, the same curves")
    add("--history", type=number(float, 0, 3600), default=HISTORY_SECONDS, help="seconds of events held, 0 to 3600")
    add("--max-clients", type=number(int, 1, 100_000), default=MAX_CLIENTS, help="open connections of any kind")
    add("--verbose", action="store_true", help="log every request and every stream's end")
    options = parser.parse_args(arguments)
    longest = MAX_HISTORY_TICKS * round(options.interval, 3)
    if options.history > longest:
        parser.error(f"argument --history: at most {longest:g} seconds ({MAX_HISTORY_TICKS} ticks) at this interval")
    return options


def interrupt(signal_number: int, frame: object) -> None:
    """For SIGINT and SIGTERM alike: the first unwinds the main thread, a second ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.WARNING,
                        format="%(asctime)s %(levelname)s %(message)s")
    logging.logThreads = False  # the clients' threads have no name, and asking for one would leave an object behind
    signal.signal(signal.SIGINT, interrupt)  # before the URL is printed: whoever waits for it may send a signal at once
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with DashboardServer(options.host, options.port, sources=[Simulation(options.seed, options.interval)],
                             interval=options.interval, history=options.history,
                             max_clients=options.max_clients) as server:
            with suppress(OSError):  # nobody may be there to read it
                print(f"The dashboard is at {server.url} (Ctrl-C ends it)", flush=True)
            server.wait()
    except KeyboardInterrupt:
        return 0
    except (OSError, UnicodeError) as problem:  # UnicodeError: the host is no name
        if filename := getattr(problem, "filename", None):
            print(f"cannot read {filename} ({problem.args[-1]}): it belongs beside sse_dashboard.py", file=sys.stderr)
        else:
            print(f"cannot listen on {options.host!r} port {options.port}: {getattr(problem, 'strerror', problem)}; "
                  "try another --host or --port", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
