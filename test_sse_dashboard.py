"""What sse_dashboard.py promises, one promise a test, in the order of its sections.

    python -m unittest

The event stream is read by a parser that is written from the standard (WHATWG HTML, "Interpreting
an event stream"), not from our encoder. Most tests drive a server whose ticks they publish by hand.
They wait for an event, with a deadline, and never for a while. What needs a browser or a proxy is
skipped where there is none, or when SSE_TEST_BROWSER is 0.
"""

import ast
import asyncio
import base64
import collections
import contextlib
import ctypes
import errno
import functools
import gc
import gzip
import hashlib
import http.client
import http.server
import io
import itertools
import json
import logging
import os
import queue
import random
import re
import resource
import select
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tracemalloc
import types
import unittest
import warnings
from pathlib import Path
from unittest import mock

import sse_dashboard as sse
from sse_dashboard import Event, Filter, Simulation, alert, metric

HERE = Path(__file__).resolve().parent
TICK = 1_767_225_600_000  # a tick at any interval
NEW_YEAR = "2026-01-01T00:00:00.000Z"  # the same
DEADLINE = 10  # seconds: no test waits longer for anything that should happen
BINARIES = os.environ.get("PATH", "") + ":/usr/sbin"  # where Debian has the proxies
CHROMIUM, DRIVER, HAPROXY, NGINX = (
    shutil.which(name, path=BINARIES) for name in ("chromium", "chromedriver", "haproxy", "nginx")
)
NO_BROWSER = "the page is not tested: apt-get install chromium chromium-driver"
NO_HAPROXY, NO_NGINX = (
    f"nothing is tested behind {name}: apt-get install {name}"
    for name in ("haproxy", "nginx-light")
)
IN_SHORT = os.environ.get("SSE_TEST_BROWSER") == "0"
METRICS = [
    "cpu_usage",
    "memory_usage",
    "disk_usage",
    "network_in",
    "network_out",
    "temperature",
    "load_average",
]

# --- Tools ---------------------------------------------------------------------------------------


def setUpModule():
    """Says in a line each what is skipped, also where unittest only counts."""
    for found, line in (
        (CHROMIUM and DRIVER, NO_BROWSER),
        (HAPROXY, NO_HAPROXY),
        (NGINX, NO_NGINX),
    ):
        if not found and not IN_SHORT:
            print(line, file=sys.stderr)


def can_run(command):
    """Whether a command ends well: what it needs may be missing here, or not be allowed."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


def can_listen(family, host):
    with contextlib.suppress(OSError), socket.socket(family) as probe:
        probe.bind((host, 0))
        return True
    return False


HAS_IPV6 = socket.has_ipv6 and can_listen(socket.AF_INET6, "::1")


class EventStreamParser:
    """The standard's algorithm: feed() takes bytes, and gives back what is dispatched.

    That is (type, data, last event ID) for each event."""

    def __init__(self):
        self.rest, self.start, self.last_event_id, self.retry, self.comments = (
            b"",
            True,
            "",
            None,
            0,
        )
        self.type, self.data = "", []

    def feed(self, chunk):
        self.rest += chunk
        if self.start and len(self.rest) >= 3:
            self.rest, self.start = self.rest.removeprefix(b"\xef\xbb\xbf"), False
        # A CR at the very end may be half of a CR LF.
        *lines, self.rest = re.split(rb"\r\n|\n|\r(?!\Z)", self.rest)
        for line in lines:
            yield from self.line(line.decode("utf-8", "replace"))

    def line(self, line):
        if not line:
            if self.data:
                yield self.type or "message", "\n".join(self.data), self.last_event_id
            self.type, self.data = "", []
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
        elif name == "event":
            self.type = value
        elif name == "data":
            self.data.append(value)
        elif name == "id" and "\0" not in value:
            self.last_event_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry = int(value)


def parse(stream):
    """All events of some bytes, as (type, JSON object, last event ID)."""
    return [
        (kind, json.loads(data), last_id)
        for kind, data, last_id in EventStreamParser().feed(stream)
    ]


def eventually(condition, seconds=DEADLINE):
    """Waits until the condition holds; the deadline makes it false."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.01)
    return True


def join_all(threads):
    """Waits until they have ended, or until the deadline of all."""
    end = time.monotonic() + DEADLINE
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))


def events_of(tick, count=7, alerts=1):
    """A tick's worth of events that say where they belong."""
    return [
        *(metric(name, tick % 1000 + n, "") for n, name in enumerate(METRICS[:count])),
        *(alert(sse.LEVELS[n % len(sse.LEVELS)], f"{tick}") for n in range(alerts)),
    ]


def filled(ticks=5, history=300.0, count=7, alerts=1):
    """A broadcaster that holds some ticks, a second apart."""
    broadcaster = sse.Broadcaster(1.0, history)
    for n in range(ticks):
        broadcaster.publish_tick(TICK + n * 1000, events_of(TICK + n * 1000, count, alerts))
    return broadcaster


def drain(subscription):
    """The bytes that a client is sent until there is nothing more for now, or it has ended."""
    with mock.patch.object(sse, "HEARTBEAT_SECONDS", 0.0002):
        has_come = itertools.takewhile(sse.HEARTBEAT.__ne__, subscription.frames())
        return b"".join(has_come)


def read_all(broadcaster, *arguments, **options):
    """The events that a client that subscribes now is sent at once, without `panels`."""
    with broadcaster.subscribe(*arguments, **options) as subscription:
        return [event for event in parse(drain(subscription)) if event[0] != "panels"]


def ids(events):
    return [last_id for kind, _, last_id in events if kind in ("metric", "alert")]


class ByHand(sse.Generator):
    """In place of the server's generator: starts and stops nothing. The test gives the ticks."""

    def start(self):
        pass

    def stop(self):
        pass


class HandDriven(sse.DashboardServer):
    """A server on a free port of loopback. Its time passes only when a test calls tick()."""

    generator_class = ByHand

    def __init__(self, **options):
        super().__init__("127.0.0.1", 0, **options)
        self.now = TICK
        self.closed = []

    def tick(self, events=None):
        self.now += 1000
        self.broadcaster.publish_tick(self.now, events_of(self.now) if events is None else events)
        return self.now

    def stream_closed(self, address, path, reason, seconds, events):
        super().stream_closed(address, path, reason, seconds, events)
        self.closed.append(reason)


class Stream:
    """A client of an event stream, on a plain socket."""

    def __init__(self, address, path="/api/events/all", headers=(), receive_buffer=0):
        self.socket = socket.socket(socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(DEADLINE)
        self.parser, self.events, self.raw, self.head = EventStreamParser(), [], b"", b""
        try:
            self.socket.connect(address)
            self.socket.sendall(
                "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()
            )
        except OSError:
            self.socket.close()
            raise

    def read(self):
        """Waits for more, and takes it; False at the end of the stream."""
        chunk = more = self.socket.recv(65536)
        self.raw += chunk
        if not self.head and b"\r\n\r\n" in self.raw:
            self.head, _, self.raw = self.raw.partition(b"\r\n\r\n")
            chunk = self.raw
        if self.head:
            self.events += [
                (kind, json.loads(data), last) for kind, data, last in self.parser.feed(chunk)
            ]
        return bool(more)

    def until(self, condition):
        """Reads until the condition holds, and gives back the events so far.

        Fails at the stream's end, and at the deadline."""
        end = time.monotonic() + DEADLINE
        while not condition(self):
            if time.monotonic() > end or not self.read():
                raise AssertionError(f"it did not come, but {self.events[-3:]}")
        return self.events

    def until_id(self, tick):
        return self.until(
            lambda stream: any(last.startswith(f"{tick}-8") for _, _, last in stream.events)
        )

    def to_the_end(self):
        with contextlib.suppress(ConnectionError):
            while self.read():
                pass
        return self.events

    def opened(self):
        self.until(lambda stream: stream.parser.retry is not None)
        return self

    def caught_up(self):
        """Waits for a comment: only who has caught up, and waits for events, is sent one."""
        self.until(lambda stream: stream.parser.comments)
        return self

    def ended_on_a_whole_event(self):
        """Reads to the end; whether nothing of an event has come without its empty line."""
        self.to_the_end()
        return bool(self.head) and not (self.parser.rest or self.parser.type or self.parser.data)

    def reset(self):
        """Closes with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def leave_and_reset(self):
        """Closes with FIN, and RST right behind it."""
        self.socket.shutdown(socket.SHUT_WR)
        self.reset()

    def talk_and_leave(self):
        """Sends bytes into the stream, then FIN, and waits for the server to close as well."""
        self.socket.sendall(b"x" * 1000)
        self.socket.shutdown(socket.SHUT_WR)
        self.to_the_end()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def exchange(address, request, seconds=DEADLINE):
    """Sends bytes, and gives back all that is answered until the connection closes."""
    with socket.create_connection(address, seconds) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


def fetch(address, path, method="GET", headers=None, body=None):
    """(status, headers, body) by the standard library's client."""
    connection = http.client.HTTPConnection(*address, timeout=DEADLINE)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


class Child:
    """A Python process that prints its URL as its first line, and what became of it.

    It is started here, and its first line awaited by `with`: so several can start at once."""

    def __init__(self, *arguments, wrapped=(), **popen):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": HERE}
        self.process = subprocess.Popen(
            [*wrapped, sys.executable, *map(str, arguments)], **options | popen
        )

    def end(self, number=signal.SIGTERM):
        """(exit status, standard error, seconds it took)"""
        start = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, errors, time.monotonic() - start

    def __enter__(self):
        spoke, _, _ = select.select([self.process.stdout], [], [], 2 * DEADLINE)
        self.url = self.process.stdout.readline().strip() if spoke else ""
        found = re.search(r"http://(\S+):(\d+)/", self.url)
        self.address = ("127.0.0.1", int(found[2])) if found else None
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


class Command(Child):
    """`python sse_dashboard.py`."""

    def __init__(self, *options, port=0, script=HERE / "sse_dashboard.py", **popen):
        super().__init__(script, "--port", port, *options, **popen)


class Program(Child):
    """A program that imports sse_dashboard."""

    def __init__(self, text, *arguments, **popen):
        super().__init__("-c", text, *arguments, **popen)


class Promises(unittest.TestCase):
    """What all tests share: a hand-driven server on demand, and a log without errors.

    A test says which errors it expects there."""

    def setUp(self):
        self.log = []
        handler = logging.Handler()
        handler.emit = lambda record: self.log.append(record)
        sse.logger.addHandler(handler)
        self.addCleanup(sse.logger.removeHandler, handler)
        propagate = mock.patch.object(sse.logger, "propagate", False)
        propagate.start()
        self.addCleanup(propagate.stop)
        self.addCleanup(
            self.nothing_else_was_logged
        )  # runs when the servers that a test adds after this have ended

    def nothing_else_was_logged(self):
        self.assertEqual(
            [record.getMessage() for record in self.log if record.levelno >= logging.ERROR], []
        )

    def expect_logged(self, text):
        found = [record for record in self.log if text in record.getMessage()]
        self.assertTrue(found, f"{text!r} was not logged")
        self.log = [record for record in self.log if record not in found]
        return found

    def setting(self, **settings):
        for name, value in settings.items():
            patch = mock.patch.object(sse, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def needs_descriptors(self, number):
        """Raises this process's own limit, or skips the test where that is not allowed."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if max(soft, hard) < number:
            self.skipTest(f"needs {number:,} descriptors: ulimit -n {number}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))

    def needs_threads(self, number):
        """Skips the test where this user may not have so many at a time."""
        done, threads = threading.Event(), []
        try:
            for _ in range(number):
                threads.append(threading.Thread(target=done.wait))
                threads[-1].start()
        except RuntimeError:
            threads.pop()
            self.skipTest(f"needs {number:,} threads: ulimit -u")
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def serve(self, ticks=3, kind=HandDriven, **options):
        server = kind(**options)
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        for _ in range(ticks):
            server.tick()
        return server

    def stream(self, server, *arguments, **options):
        stream = Stream(server.server_address[:2], *arguments, **options)
        self.addCleanup(stream.socket.close)
        return stream


# --- Events --------------------------------------------------------------------------------------


class Wire(Promises):
    def test_the_bytes_of_an_event(self):
        """An event is its type, one data field whatever its text holds, its ID last, and an empty
        line."""
        for text, data in {
            "": '""',
            "one": '"one"',
            "a\nb": r'"a\nb"',
            "a\rb": r'"a\rb"',
            "a\r\nb": r'"a\r\nb"',
            "a\n\n": r'"a\n\n"',
            " a": '" a"',
            "a\u2028b\x85c\x7fd": '"a\u2028b\x85c\x7fd"',
            "a\x0bc": r'"a\u000bc"',
            "a\0b": r'"a\u0000b"',
            "id: 1": '"id: 1"',
            'say "°C"': r'"say \"°C\""',
        }.items():
            with self.subTest(text=text):
                wire = Event("note", {"text": text}).encode(TICK, "7-1")
                json_text = f'{{"type": "note", "text": {data}, "timestamp": "{NEW_YEAR}"}}'
                self.assertEqual(wire, f"event: note\ndata: {json_text}\nid: 7-1\n\n".encode())
                ((kind, received, last_id),) = EventStreamParser().feed(wire)
                self.assertEqual(
                    (kind, json.loads(received)["text"], last_id), ("note", text, "7-1")
                )
        self.assertEqual(
            Event("x", {}).encode(TICK),
            f'event: x\ndata: {{"type": "x", "timestamp": "{NEW_YEAR}"}}\n\n'.encode(),
        )

    def test_the_parser_of_these_tests_reads_as_the_standard_says(self):
        """CR, LF, CR LF, a byte order mark, comments and broken fields, in pieces of any size."""
        text = (
            b"\xef\xbb\xbf: hello\r\nretry: 7\rretry: x7\nevent: a\r\ndata:1\rdata: 2\nid: "
            b"5\r\n\r\n"
            b"id: 6\0\ndata\n\nnonsense: 1\nevent: no data\n\ndata:  x\n\n"
        )
        for size in (1, 2, 3, 7, 1000):
            parser = EventStreamParser()
            pieces = [text[n : n + size] for n in range(0, len(text), size)]
            found = [event for piece in pieces for event in parser.feed(piece)]
            self.assertEqual(
                found, [("a", "1\n2", "5"), ("message", "", "5"), ("message", " x", "5")]
            )
            self.assertEqual((parser.retry, parser.comments), (7, 1))

    def test_the_formats_of_the_contract(self):
        """Metric and alert events look exactly as they are documented."""
        self.assertEqual(
            metric("cpu_usage", 45.2, "%").encode(TICK, f"{TICK}-3").decode(),
            'event: metric\ndata: {"type": "metric", "name": "cpu_usage", "value": 45.2, '
            '"unit": "%", "timestamp": "2026-01-01T00:00:00.000Z"}\nid: 1767225600000-3\n\n',
        )
        self.assertEqual(
            alert("warning", "High CPU usage detected", "cpu_usage")
            .encode(TICK, f"{TICK}-8")
            .decode(),
            'event: alert\ndata: {"type": "alert", "level": "warning", '
            '"message": "High CPU usage detected", "metric": "cpu_usage", '
            '"timestamp": "2026-01-01T00:00:00.000Z"}\nid: 1767225600000-8\n\n',
        )
        self.assertNotIn(b'"metric"', alert("info", "Backup finished").encode(TICK))
        self.assertEqual(sse.timestamp(TICK + 7), "2026-01-01T00:00:00.007Z")
        self.assertEqual(sse.timestamp(TICK + 7.9), "2026-01-01T00:00:00.007Z")

    def test_what_cannot_be_sent_raises_where_it_is_made(self):
        """Wrong events raise at birth, with a sentence that names the mistake."""
        for make, error, words in (
            (lambda: metric("x", float("nan")), ValueError, "finite"),
            (lambda: metric("x", float("inf")), ValueError, "finite"),
            (lambda: metric("x", "5"), TypeError, "number"),
            (lambda: metric("x", True), TypeError, "number"),
            (lambda: metric("x", None), TypeError, "number"),
            (lambda: metric("", 1), ValueError, "name"),
            (lambda: metric(5, 1), TypeError, "name"),
            (lambda: metric("x", 1, 5), TypeError, "unit"),
            (lambda: metric("x", 10**400), ValueError, "finite"),
            (lambda: metric("a,b", 1), ValueError, "comma"),
            (lambda: metric("\ud800", 1), ValueError, "surrogate"),
            (lambda: alert("loud", "x"), ValueError, ", ".join(sse.LEVELS)),
            (lambda: alert("info", 5), TypeError, "message"),
            (lambda: alert("info", "m", 5), TypeError, "metric"),
            (lambda: Event(5, {}), ValueError, "type"),
            (lambda: Event("a\nb", {}), ValueError, "one line"),
            (lambda: Event("a\rb", {}), ValueError, "one line"),
            (lambda: Event("a\0b", {}), ValueError, "NUL"),
            (lambda: Event("", {}), ValueError, "type"),
            (lambda: Event("a", {"timestamp": 1}), ValueError, "timestamp"),
            (lambda: Event("a", {"x": {1}}), TypeError, "set"),
            (lambda: Event("a", {"type": 1}), ValueError, "`type`"),
            (lambda: Event("a", {"x": float("nan")}), ValueError, "not JSON compliant"),
            (lambda: Event("a", {}, at="now"), ValueError, "Unix milliseconds"),
            (lambda: Event("a", {}, at=True), ValueError, "Unix milliseconds"),
            (lambda: metric("x", 1, at=-1), ValueError, "Unix milliseconds"),
            (lambda: metric("x", 1, at=float("nan")), ValueError, "Unix milliseconds"),
            (lambda: alert("info", "m", at=253_402_300_800_000), ValueError, "Unix milliseconds"),
        ):
            with self.assertRaisesRegex(error, words):
                make()

    def test_an_event_stays_what_it_was_when_it_was_made(self):
        """Who changes a dictionary later changes no event that was made of it."""
        fields = {"name": "x", "value": 1.0, "unit": ""}
        event = Event("metric", fields)
        fields["value"] = float("nan")
        self.assertIn(b'"value": 1.0', event.encode(TICK))

    def test_text_of_any_language_and_line_breaks_arrive_as_they_were(self):
        """What JSON can say comes out of the stream as it went in."""
        message = "line\r\nbreak \u2028 \0 <b>&\"' 日本 🙂"
        ((_, data, _),) = parse(alert("info", message).encode(0, "1-1"))
        self.assertEqual(data["message"], message)


# --- Simulation ----------------------------------------------------------------------------------


LIMITS = {name: panel.limits for panel in sse.PANELS for name in panel.metrics if panel.limits}


@functools.cache
def first_hour():
    """The events of an hour, by tick. Several tests look at the same ones: they take a second."""
    simulation = Simulation()
    return {tick: simulation.events_at(tick) for tick in range(TICK, TICK + 3_600_000, 1000)}


def threshold_alerts(events):
    """The level and the metric of each alert that a metric caused."""
    caused = [event.fields for event in events if event.type == "alert"]
    return [(fields["level"], fields["metric"]) for fields in caused if "metric" in fields]


def system_events(events):
    """What the alerts say that no metric caused."""
    alerts = [event.fields for event in events if event.type == "alert"]
    return [fields["message"] for fields in alerts if "metric" not in fields]


class TheSimulation(Promises):
    def test_the_same_seed_and_tick_give_the_same_bytes_in_every_process(self):
        """Two processes agree about every byte, and about nothing with another seed."""
        program = (
            "import sse_dashboard as s, hashlib, sys; sim = s.Simulation(int(sys.argv[1]), "
            "0.5); h = hashlib.sha256();"
            f"[h.update(e.encode(t, '')) for t in range({TICK}, {TICK} + 300000, 500) for e "
            f"in sim.events_at(t)];"
            "print(h.hexdigest())"
        )

        runs = [
            subprocess.Popen(
                [sys.executable, "-c", program, seed],
                cwd=HERE,
                text=True,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONHASHSEED": hash_seed},
            )
            for seed, hash_seed in (("3", "1"), ("3", "2"), ("4", "1"))
        ]
        one, same, other = (run.communicate()[0] for run in runs)
        self.assertEqual([run.returncode for run in runs], [0] * 3)
        self.assertEqual(one, same)
        self.assertNotEqual(one, other)

    def test_a_tick_does_not_depend_on_what_was_asked_before(self):
        """Backwards, at random or for the first time: a tick always has the same events."""
        for interval in (0.05, 1.0, 7.0, 60.0):
            step = round(interval * 1000)
            first = TICK // step * step
            ticks = [first + n * step for n in range(400)]
            straight = Simulation(5, interval)
            expected = {tick: straight.events_at(tick) for tick in ticks}
            self.assertEqual({tick: straight.events_at(tick) for tick in reversed(ticks)}, expected)
            for tick in random.Random(1).sample(ticks, 40):
                self.assertEqual(Simulation(5, interval).events_at(tick), expected[tick])

    def test_every_reading_is_finite_and_in_its_range(self):
        """One metric event for each name at every tick, in order, with its unit and a value that
        can be."""
        promised = dict(zip(METRICS, ["%", "%", "%", "B/s", "B/s", "°C", ""]))
        units = {name: reading.unit for name, reading in sse.READINGS.items()}
        self.assertLessEqual(promised.items(), units.items())
        for seed in range(3):
            simulation = Simulation(seed, 10)
            for tick in range(TICK, TICK + 6 * 3_600_000, 30_000):
                found = [
                    event.fields for event in simulation.events_at(tick) if event.type == "metric"
                ]
                self.assertEqual(
                    [(fields["name"], fields["unit"]) for fields in found], list(units.items())
                )
                for fields in found:
                    self.assertTrue(
                        0 <= fields["value"] <= (100 if fields["unit"] == "%" else 125e6), fields
                    )

    def test_alerts_are_alive_and_do_not_shout(self):
        """One to three a minute, and each level of the system's events within ten minutes."""
        levels = [
            (tick, event.fields["level"])
            for tick, events in first_hour().items()
            for event in events
            if event.type == "alert"
        ]
        self.assertTrue(60 <= len(levels) <= 180, len(levels))
        for start in range(TICK, TICK + 3_000_000, 10_000):
            seen = {level for tick, level in levels if start <= tick < start + 600_000}
            self.assertEqual(seen, set(sse.SYSTEM_EVENTS), start)

    def test_a_threshold_is_told_once_and_its_end_too(self):
        """An alert names the metric whose reading crossed a threshold; it is repeated after the
        return to normal alone."""
        crossings = 0
        slow, fast = Simulation(0, 60.0), Simulation(0, 0.05)
        crossed = [tick for tick, events in first_hour().items() if threshold_alerts(events)]
        around = range(crossed[0] - 60_000, crossed[0] + 90_000, 50)
        for simulation, events_by_tick in (
            (Simulation(), first_hour()),
            (slow, {tick: slow.events_at(tick) for tick in range(TICK, TICK + 40_000_000, 60_000)}),
            (fast, {tick: fast.events_at(tick) for tick in around}),
        ):
            state = {}  # found at the first alert of each: the run may begin in trouble
            crossed_at = dict.fromkeys(METRICS, 0)
            recent = {name: [] for name in LIMITS}
            for tick, events in events_by_tick.items():
                values = {
                    event.fields["name"]: event.fields["value"]
                    for event in events
                    if event.type == "metric"
                }
                for name in LIMITS:
                    recent[name].append(values[name])
                for name, limits in LIMITS.items():
                    if values[name] >= limits[0]:
                        crossed_at[name] = tick
                for event in events:
                    if event.type == "metric" or "metric" not in event.fields:
                        continue
                    name, level = event.fields["metric"], event.fields["level"]
                    crossings += 1
                    if level == "success":
                        calm = tick - crossed_at[name]
                        self.assertGreaterEqual(calm, sse.CALM_SECONDS * 1000 - simulation.check_ms)
                        self.assertGreater(state.get(name, 1), 0)
                        state[name] = 0
                    else:
                        severity = sse.TROUBLE.index(level) + 1
                        self.assertGreater(severity, state.get(name, 0), event)
                        self.assertGreaterEqual(
                            max(recent[name][-simulation.check_ms // simulation.interval_ms :]),
                            LIMITS[name][severity - 1],
                        )
                        state[name] = severity
        self.assertGreater(crossings, 40)

    def test_a_system_event_is_told_once_whatever_the_interval(self):
        """Its moment belongs to one tick, also when it is exactly that of a tick."""
        fast = Simulation(0, 0.05)
        for tick, events in itertools.islice(first_hour().items(), 1500):  # one at 1,490,750 ms
            if system_events(events):
                moments = range(tick - 950, tick + 1, 50)
                found = [event for moment in moments for event in fast.events_at(moment)]
                self.assertEqual(sorted(system_events(found)), sorted(system_events(events)))

    def test_a_program_has_alerts_by_the_same_rule(self):
        """Whose readings are the simulation's has the same alerts from WithAlerts, at the same
        ticks, whatever the interval."""

        class Readings:
            panels = sse.PANELS

            def events_at(self, tick):
                return [event for event in events_by_tick[tick] if event.type == "metric"]

        slow = Simulation(0, 7.0)
        first = TICK // 7000 * 7000
        told = set()
        for events_by_tick in (
            first_hour(),
            {tick: slow.events_at(tick) for tick in range(first, first + 6_000_000, 7000)},
        ):
            source = sse.WithAlerts(Readings())
            has_seen = min(events_by_tick) + 10 * 60_000  # until then the past is only ours
            for tick, events in events_by_tick.items():
                found = threshold_alerts(source.events_at(tick))
                if tick >= has_seen:
                    self.assertEqual(found, threshold_alerts(events), tick)
                    told.update(level for level, _ in found)
        self.assertEqual(told, {"warning", "error", "success"})


# --- Subscription --------------------------------------------------------------------------------


ALERTS = Filter(frozenset({"alert"}))


def numbered(first, last):
    return [alert("info", f"n{number}") for number in range(first, last)]


def numbers(wire):
    """The numbers of the numbered alerts among some bytes of a stream."""
    return [int(number) for number in re.findall(rb'"message": "n(\d+)"', wire)]


class OneSubscription(Promises):
    def test_a_full_queue_puts_a_client_behind_and_it_misses_nothing(self):
        """What does not fit its queue it reads from the history, and is live again behind that."""
        self.setting(QUEUE_FRAMES=3)
        broadcaster = filled(1)
        with broadcaster.subscribe(ALERTS) as subscription:
            drain(subscription)
            for round in range(3):
                self.assertTrue(subscription.live)
                for event in numbered(round * 200, round * 200 + 200):
                    broadcaster.publish(event)
                self.assertFalse(subscription.live)
                got = numbers(drain(subscription))
                self.assertEqual(got, list(range(round * 200, round * 200 + 200)))
            self.assertEqual(subscription.reason, "")

    def test_a_client_whose_place_is_gone_is_told_in_the_open_stream(self):
        """It gets what is queued, a `reset`, and then all that is held; and goes on."""
        self.setting(QUEUE_FRAMES=2)
        broadcaster = filled(3, history=2)
        with broadcaster.subscribe(Filter(frozenset({"metric"}))) as subscription:
            drain(subscription)
            for n in range(3, 13):
                broadcaster.publish_tick(TICK + n * 1000, events_of(0))
            events = parse(drain(subscription))
            self.assertEqual(
                [kind for kind, _, _ in events], [*["metric"] * 14, "reset"] + ["metric"] * 14
            )
            self.assertEqual(events[14][1]["reason"], "expired")
            ticks = [int(last.partition("-")[0]) - TICK for last in ids(events)]
            self.assertEqual(sorted(set(ticks)), [3000, 4000, 11_000, 12_000])
            self.assertTrue(subscription.live)

    def test_a_client_whose_place_is_gone_is_told_of_each_type_before_its_first_event(self):
        """Also when the event that was new of its type is no longer held."""
        self.setting(QUEUE_FRAMES=1)
        broadcaster = filled(1, history=2)
        with broadcaster.subscribe() as subscription:
            drain(subscription)
            for n in range(1, 9):
                broadcaster.publish_tick(TICK + n * 1000, [Event("deploy", {})])
            kinds = [kind for kind, _, _ in parse(drain(subscription))]
        kinds = kinds[kinds.index("reset") :]
        self.assertEqual(kinds, ["reset", "panels", "deploy", "deploy"])

    def test_a_long_history_comes_in_handfuls(self):
        """So that a client takes little memory; and where its filter passes nothing, it reads on
        and is sent nothing."""
        broadcaster = filled(1)
        for n in range(1, 20):
            events = [metric("x", number) for number in range(300)] + numbered(n, n + 1)
            broadcaster.publish_tick(TICK + n * 1000, events)
        self.setting(HEARTBEAT_SECONDS=0.001)
        for wanted in (Filter(), ALERTS):
            with broadcaster.subscribe(wanted, f"{TICK}-8") as subscription:
                frames = list(itertools.takewhile(sse.HEARTBEAT.__ne__, subscription.frames()))
            counts = [len(ids(parse(frame))) for frame in frames]
            self.assertLessEqual(max(counts), sse.HANDFUL_EVENTS)
            self.assertTrue(all(frames))
            self.assertEqual(numbers(b"".join(frames)), list(range(1, 20)))

    def test_in_whatever_order_it_is_published_and_read(self):
        """A client with a small queue has each alert once and in order, however often it falls
        behind."""
        self.setting(QUEUE_FRAMES=3, HANDFUL_EVENTS=4, HEARTBEAT_SECONDS=0.0001)
        fell_behind = 0
        for seed in range(40):
            chance = random.Random(seed)
            broadcaster, published, wire = filled(1), 0, b""
            with broadcaster.subscribe(ALERTS, history=0) as subscription:
                frames, was_live = subscription.frames(), False
                for _ in range(100):
                    for _ in range(chance.choice((0, 0, 0, 1, 2, 9))):
                        more = chance.choice((1, 1, 5))
                        broadcaster.publish(*numbered(published, published + more))
                        published += more
                    for _ in range(chance.choice((0, 1, 1, 2, 3, 20))):
                        frame = next(frames)
                        if frame == sse.HEARTBEAT:
                            break
                        wire += frame
                    fell_behind += was_live and not subscription.live
                    was_live = subscription.live
                wire += drain(subscription)
                self.assertTrue(subscription.live)
            self.assertEqual(numbers(wire), list(range(published)), seed)
        self.assertGreater(fell_behind, 100)

    def test_in_whatever_order_with_a_short_history(self):
        """Nothing is left out but where a `reset` says so, and behind it comes all that is held."""
        self.setting(QUEUE_FRAMES=3, HANDFUL_EVENTS=4, HEARTBEAT_SECONDS=0.0001)
        resets = 0
        for seed in range(40):
            chance = random.Random(seed)
            broadcaster, published, expected = filled(1, history=2, alerts=0), 0, 0
            with broadcaster.subscribe(ALERTS, history=0) as subscription:
                frames = subscription.frames()
                while not subscription.live:
                    next(frames)
                for tick in range(1, 60):
                    more = chance.choice((0, 1, 2, 9))
                    batch = numbered(published, published + more)
                    broadcaster.publish_tick(TICK + tick * 1000, batch)
                    published += more
                    for _ in range(chance.choice((0, 0, 1, 2, 20))):
                        frame = next(frames)
                        if frame == sse.HEARTBEAT:
                            break
                        if b"event: reset" in frame:
                            resets += 1
                            held = read_all(broadcaster, ALERTS, "0-0")
                            expected = int(held[1][1]["message"][1:]) if held[1:] else published
                        got = numbers(frame)
                        self.assertEqual(got, list(range(expected, expected + len(got))), seed)
                        expected += len(got)
        self.assertGreater(resets, 30)

    def test_a_client_that_has_just_come_has_missed_nothing(self):
        """Its place may be forgotten before it has read anything. It is told nothing of that, nor
        a second time when it had to start over."""
        for last_event_id, expected in (("", []), ("1-1", ["expired"]), (f"{TICK}-1", ["expired"])):
            broadcaster = filled(1, history=2)
            with broadcaster.subscribe(ALERTS, last_event_id, 300) as subscription:
                for n in range(1, 5):
                    broadcaster.publish_tick(TICK + n * 1000, events_of(0))
                events = parse(drain(subscription))
            told = [data["reason"] for kind, data, _ in events if kind == "reset"]
            self.assertEqual(told, expected, last_event_id)
            self.assertEqual(len(ids(events)), 2)

    def test_the_end_comes_behind_what_is_queued(self):
        """What was offered before the end is still delivered, and the first reason stays."""
        broadcaster = filled(1)
        with broadcaster.subscribe(ALERTS) as subscription:
            drain(subscription)
            broadcaster.publish(*numbered(0, 1))
            broadcaster.publish(*numbered(1, 3))
            broadcaster.end(subscription, "shutdown")
            broadcaster.end(subscription, "closed")
            broadcaster.publish(*numbered(3, 4))
            self.assertEqual(numbers(b"".join(subscription.frames())), [0, 1, 2])
            self.assertEqual(subscription.reason, "shutdown")

    def test_the_end_of_one_that_is_behind(self):
        """It comes behind what fitted into the queue, and stays behind: the client may resume."""
        self.setting(QUEUE_FRAMES=2)
        broadcaster = filled(1)
        with broadcaster.subscribe(ALERTS) as subscription:
            drain(subscription)
            for event in numbered(0, 10):
                broadcaster.publish(event)
            broadcaster.end(subscription, "stalled")
            self.assertEqual(numbers(b"".join(subscription.frames())), [0, 1])
        with broadcaster.subscribe(history=1000) as subscription:
            broadcaster.end(subscription, "closed")
            self.assertEqual(ids(parse(b"".join(subscription.frames()))), [])

    def test_the_end_while_it_is_catching_up(self):
        """It comes, and nothing is left out before it: who resumes would never get that."""

        class EndsJustThen(sse.Broadcaster):
            def catch_up(self, subscription):
                self.end(subscription, "closed")
                self.publish(*self.just_then)
                return super().catch_up(subscription)

        self.setting(HEARTBEAT_SECONDS=0.001)
        for history, just_then in ((10, numbered(1, 2)), (10, []), (0, [])):
            broadcaster = EndsJustThen()
            broadcaster.just_then = just_then
            broadcaster.publish_tick(TICK, numbered(0, 1))
            with broadcaster.subscribe(ALERTS, history=history) as subscription:
                frames = list(itertools.islice(subscription.frames(), 9))
            self.assertNotIn(sse.HEARTBEAT, frames)
            got = numbers(b"".join(frames))
            self.assertEqual(got, list(range(len(got))))

    def test_a_client_that_sleeps_is_woken(self):
        """By a gap and by the end, at once: not by the next event, nor by the next heartbeat."""
        self.setting(HEARTBEAT_SECONDS=6 * DEADLINE)
        broadcaster, got, told = filled(1), [], threading.Event()

        def read(subscription):
            for frame in subscription.frames():
                got.append(frame)
                if b"event: reset" in frame:
                    told.set()

        with broadcaster.subscribe(ALERTS, history=0) as subscription:
            reader = threading.Thread(target=read, args=[subscription], daemon=True)
            reader.start()
            self.assertTrue(eventually(lambda: subscription.live))
            broadcaster.publish_tick(TICK + 3_600_000, [], anew=True)
            self.assertTrue(told.wait(DEADLINE))
            self.assertTrue(eventually(lambda: subscription.live))
            broadcaster.end(subscription, "closed")
            reader.join(DEADLINE)
            self.assertFalse(reader.is_alive())
        self.assertEqual([kind for kind, _, _ in parse(b"".join(got))], ["reset"])

    def test_silence_is_filled_with_comments(self):
        """After HEARTBEAT_SECONDS without a frame comes a comment, and not before."""
        broadcaster = filled(1)
        with broadcaster.subscribe(ALERTS) as subscription:
            drain(subscription)
            self.setting(HEARTBEAT_SECONDS=0.1)
            frames, start = subscription.frames(), time.monotonic()
            self.assertEqual([next(frames), next(frames)], [b":\n", b":\n"])
            self.assertGreaterEqual(time.monotonic() - start, 0.2)

    def test_no_empty_line_comes_without_an_event(self):
        """Clients that dispatch at every empty line, as httpx-sse does, get data every time."""
        self.setting(QUEUE_FRAMES=2)
        for wanted in FILTERS:
            broadcaster = filled(3, history=3)
            with broadcaster.subscribe(wanted, "1-1") as subscription:
                wire = drain(subscription) + sse.HEARTBEAT + sse.HEARTBEAT
                for n in range(3, 10):  # it falls behind, and its place is gone
                    broadcaster.publish_tick(TICK + n * 1000, [*events_of(0), Event("deploy", {})])
                wire += drain(subscription) + sse.HEARTBEAT
                broadcaster.publish(alert("error", "x"))
                wire += drain(subscription)
            fields = []
            for line in wire.decode().split("\n")[:-1]:
                if line:
                    fields.append(line.partition(":")[0])
                else:
                    self.assertIn("data", fields)
                    fields = []
            self.assertEqual(wire.count(b"event: reset"), 2)

    def test_no_empty_line_comes_in_silence(self):
        """On no stream: heartbeats before, between and behind events end none."""
        self.setting(HEARTBEAT_SECONDS=0.02)
        server = self.serve()
        for path in STREAMS:
            stream = self.stream(server, f"{path}?lastEventId=1-1")
            for _ in range(2):
                server.tick()
                stream.until(lambda stream: stream.parser.last_event_id > f"{server.now}")
                heard = stream.parser.comments + 2
                stream.until(lambda stream, heard=heard: stream.parser.comments >= heard)
            blocks = stream.raw.split(b"\n\n")
            self.assertRegex(blocks.pop(), rb"\A(:\n)*:?\Z")
            self.assertTrue(all(b"\ndata: " in block for block in blocks), blocks)

    def test_3000_alerts_in_one_loop_reach_every_sleeping_reader(self):
        """However they are scheduled, each thread gets each alert once, in order."""
        broadcaster, got = filled(1), []

        def read(subscription):
            wire = b""
            for frame in subscription.frames():
                wire += frame
                if frame.endswith(b"-3000\n\n") or b'"n2999"' in frame:
                    break
            got.append(numbers(wire))

        with contextlib.ExitStack() as stack:
            readers = []
            for _ in range(8):
                subscription = stack.enter_context(broadcaster.subscribe(ALERTS))
                readers.append(threading.Thread(target=read, args=[subscription], daemon=True))
                readers[-1].start()
            for event in numbered(0, 3000):
                broadcaster.publish(event)
            join_all(readers)
        self.assertEqual(got, [list(range(3000))] * 8)


def broadcaster_tick(broadcaster):
    """The tick of the newest ID."""
    return int(broadcaster.snapshot()["last_event_id"].partition("-")[0])


# --- Broadcaster ---------------------------------------------------------------------------------

FILTERS = (
    Filter(),
    Filter(frozenset({"metric"})),
    Filter(frozenset({"alert"})),
    Filter(names=frozenset({"cpu_usage"})),
    Filter(frozenset({"metric"}), frozenset({"load_average", "disk_usage"})),
    Filter(levels=frozenset({"error"})),
)


class TheBroadcaster(Promises):
    def test_ids_are_the_tick_and_the_number_in_it(self):
        """IDs strictly increase, over ticks, events in between, and a clock that is set back."""
        broadcaster = filled(2)
        broadcaster.publish(alert("info", "between"))
        broadcaster.publish(alert("info", "again"))
        broadcaster.publish_tick(TICK + 2000, events_of(0))
        found = ids(read_all(broadcaster, history=1000))
        numbers = [tuple(map(int, text.split("-"))) for text in found]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertEqual(found[:8], [f"{TICK}-{n}" for n in range(1, 9)])
        self.assertEqual([tick for tick, _ in numbers[16:18]], [TICK + 1000] * 2)
        self.assertEqual(broadcaster.snapshot()["events_published"], 26)
        with mock.patch.object(sse.time, "time", lambda: (TICK - 5000) / 1000):
            broadcaster.publish(alert("info", "the clock was set back"))
            broadcaster.publish(alert("info", "and again"))
        self.assertEqual(
            ids(read_all(broadcaster))[-3:], [f"{TICK + 2000}-{n}" for n in (8, 9, 10)]
        )
        self.assertEqual(broadcaster.snapshot()["last_event_id"], f"{TICK + 2000}-10")

    def test_an_event_between_ticks_has_a_new_id_after_a_restart_too(self):
        """Its number counts the microseconds since the tick, so that a client's last ID never
        hides a later event."""
        now = [TICK + 10]
        with mock.patch.object(sse.time, "time", lambda: now[0] / 1000):
            before, after = filled(1), filled(1)
            now[0] = TICK + 200
            before.publish(alert("info", "before"))
            now[0] = TICK + 700
            after.publish(alert("info", "after the restart"))
        last = ids(read_all(before))[-1]
        self.assertEqual(
            [data["message"] for _, data, _ in read_all(after, Filter(frozenset({"alert"})), last)],
            ["after the restart"],
        )

    def test_many_events_between_ticks_have_new_ids_after_a_restart_too(self):
        """As fast as they can be published: a server that is started again within the tick gives
        larger ones."""
        tick, seen = int(time.time()) * 1000, []
        for _ in range(2):
            broadcaster = sse.Broadcaster(60.0, 300)
            broadcaster.publish_tick(tick, [])
            for _ in range(5000):
                broadcaster.publish(alert("info", "x"))
            seen += [
                tuple(map(int, text.split("-")))
                for text in ids(read_all(broadcaster, history=3600))
            ]
        self.assertEqual(seen, sorted(set(seen)))
        self.assertEqual(len(seen), 10_000)

    def test_resume_at_every_position_under_every_filter(self):
        """After any ID, sent or not, come exactly the later events that pass the filter."""
        broadcaster = filled(3, alerts=4)
        for wanted in FILTERS:
            everything = read_all(broadcaster, wanted, history=1000)
            for tick in (TICK, TICK + 1000, TICK + 1500, TICK + 2000, TICK + 3000):
                for number in range(0, 14):
                    expected = [
                        event
                        for event in everything
                        if event[0] != "status"
                        and tuple(map(int, event[2].split("-"))) > (tick, number)
                    ]
                    found = [
                        event
                        for event in read_all(broadcaster, wanted, f"{tick}-{number}")
                        if event[0] != "status"
                    ]
                    self.assertEqual(found, expected, (wanted, tick, number))

    def test_the_first_bytes_are_the_reconnection_time(self):
        """Each client is told another one, between two and four seconds."""
        broadcaster, told = filled(), set()
        for _ in range(30):
            with broadcaster.subscribe() as subscription:
                first = next(subscription.frames())
            found = re.match(rb"retry: (\d+)\nevent: ", first)
            told.add(int(found[1]))
        self.assertTrue(all(2000 <= ms <= 4000 for ms in told))
        self.assertGreater(len(told), 5)

    def test_without_an_id_the_newest_tick_comes_at_once(self):
        """A new client sees values before the next tick, on `all` with a status before them."""
        events = read_all(filled(3))
        self.assertEqual([kind for kind, _, _ in events], ["status", *["metric"] * 7, "alert"])
        self.assertEqual(ids(events)[0], f"{TICK + 2000}-1")

    def test_a_status_is_true_and_has_no_id(self):
        """Open streams and the interval as they are, at connect and at every tick, and nothing
        that moves the cursor."""
        broadcaster = sse.Broadcaster(0.25, 10)
        broadcaster.publish_tick(TICK - 250, [])
        with broadcaster.subscribe(history=0), broadcaster.subscribe(history=0) as subscription:
            wire = drain(subscription)
            broadcaster.publish_tick(TICK, [])
            events = parse(wire + drain(subscription))
        found = [(kind, last) for kind, _, last in events]
        self.assertEqual(found, [("status", ""), ("panels", ""), ("status", "")])
        for _, data, _ in events[::2]:
            self.assertEqual((data["connections"], data["interval_seconds"]), (2, 0.25))
            self.assertTrue(0 <= data["uptime_seconds"] < DEADLINE)
            fields = ["uptime_seconds", "connections", "interval_seconds", "instance"]
            self.assertEqual(list(data), ["type", *fields, "timestamp"])
        started_anew = read_all(sse.Broadcaster())[0][1]
        self.assertNotEqual(started_anew["instance"], events[0][1]["instance"])
        self.assertEqual(events[2][1]["instance"], events[0][1]["instance"])
        self.assertEqual(events[2][1]["timestamp"], NEW_YEAR)  # that of its tick

    def test_panels_come_once_before_the_replay(self):
        """They say the title, what is held, how metrics are shown, and a program's own types."""
        panel = sse.Panel("Load", {"load": "now"}, thresholds={"warning": 4}, decimals=2)
        broadcaster = sse.Broadcaster(1.0, 60, "Mine", [panel])
        broadcaster.publish_tick(TICK, [metric("load", 1), Event("deploy", {})])
        with broadcaster.subscribe(history=10) as subscription:
            events = parse(drain(subscription))
            kinds = [kind for kind, _, _ in events]
            self.assertEqual(kinds, ["status", "panels", "metric", "panels", "deploy"])
            shown = {"title": "Load", "metrics": {"load": "now"}, "thresholds": {"warning": 4}}
            self.assertEqual(events[1][1]["panels"], [shown | {"decimals": 2}])
            self.assertEqual(events[1][1]["title"], "Mine")
            self.assertEqual(events[1][1]["history_seconds"], 60)
            self.assertEqual(events[1][1]["types"], ["deploy"])
            # A new type is told before its first event, also to who catches up.
            broadcaster.publish(Event("rollback", {}))
            events = parse(drain(subscription))
            self.assertEqual([kind for kind, _, _ in events], ["panels", "rollback"])
            self.assertEqual(events[0][1]["types"], ["deploy", "rollback"])
            broadcaster.publish(Event("rollback", {}))
            self.assertEqual([kind for kind, _, _ in parse(drain(subscription))], ["rollback"])
            # Several that are new in one batch: the last word names them all.
            broadcaster.publish(Event("scale", {}), Event("drain", {}))
            events = parse(drain(subscription))
            kinds = [kind for kind, _, _ in events]
            self.assertEqual(kinds, ["panels", "scale", "panels", "drain"])
            self.assertEqual(events[2][1]["types"], ["deploy", "rollback", "scale", "drain"])
        with broadcaster.subscribe(ALERTS, "1-1") as subscription:
            self.assertEqual([kind for kind, _, _ in parse(drain(subscription))], ["reset"])

    def test_what_is_forgotten_is_forgotten_by_name(self):
        """Metrics and types that are no longer held are not known any more; panels are."""
        panel = sse.Panel("Load", {"load": ""})
        broadcaster = sse.Broadcaster(1.0, 5, "x", [panel])
        broadcaster.publish_tick(TICK, [Event("deploy", {})])
        for n in range(1, 60):
            broadcaster.publish_tick(TICK + n * 1000, [metric(f"m{n}-{i}", 1) for i in range(10)])
        self.assertEqual(len(broadcaster.metric_names()), 51)
        self.assertNotIn("m54-0", broadcaster.metric_names())
        self.assertIn("m55-0", broadcaster.metric_names())
        self.assertIn("load", broadcaster.metric_names())
        with broadcaster.subscribe() as subscription:
            self.assertEqual(parse(drain(subscription))[1][1]["types"], [])

    def test_what_is_published_carries_its_moment(self):
        """Its own, or this one to the millisecond: never that of the tick before."""
        now = [TICK + 54_800]
        with mock.patch.object(sse.time, "time", lambda: now[0] / 1000):
            broadcaster = sse.Broadcaster(60.0, 300)
            broadcaster.publish_tick(TICK, [])
            broadcaster.publish(alert("info", "x"), metric("a", 1), metric("b", 1, at=TICK + 5))
            now[0] += 20
            broadcaster.publish(metric("a", 2), metric("b", 2, at=TICK + 6.5))
            with self.assertRaisesRegex(ValueError, "later moment"):
                broadcaster.publish(metric("c", 1), metric("b", 3, at=TICK + 6))
            now[0] -= 5000
            broadcaster.publish(metric("a", 3))  # the clock was set back: not before the newest
            now[0] = TICK - 5000
            broadcaster.publish(alert("info", "x"))  # ... and not before the tick
            events = read_all(broadcaster, history=1000)[1:]
        moments = [data["timestamp"][-10:] for _, data, _ in events]
        self.assertEqual(
            moments,
            ["00:54.800Z"] * 2
            + ["00:00.005Z", "00:54.820Z", "00:00.006Z", "00:54.820Z", "00:00.000Z"],
        )
        self.assertNotIn("c", broadcaster.metric_names())

    def test_history_is_the_last_seconds_at_most_what_is_held(self):
        """`history` replays whole ticks; 0 replays nothing; an ID beats it."""
        broadcaster = filled(10, history=6)
        for seconds, ticks in ((0, 0), (1, 1), (2.5, 3), (6, 6), (3600, 6)):
            self.assertEqual(len(ids(read_all(broadcaster, history=seconds))), 8 * ticks, seconds)
        self.assertEqual(
            len(ids(read_all(broadcaster, last_event_id=f"{TICK + 9000}-7", history=5))), 1
        )
        broadcaster.publish(alert("info", "later"))
        with broadcaster.subscribe(ALERTS, history=0) as subscription:
            broadcaster.publish(alert("info", "live"))
            messages = [data["message"] for _, data, _ in parse(drain(subscription))]
        self.assertEqual(messages, ["live"])

    def test_only_the_history_is_held(self):
        """Older ticks are forgotten; without a history the newest tick stays, for new clients."""
        self.assertEqual(len(ids(read_all(filled(500, history=20), last_event_id="1-1"))), 160)
        nothing = filled(5, history=0)
        self.assertEqual(len(ids(read_all(nothing))), 8)
        self.assertEqual(read_all(nothing, last_event_id=f"{TICK + 3000}-8")[0][0], "status")

    def test_an_expired_id_is_told_and_everything_held_follows(self):
        """`reset` comes first, without an ID; an ID whose successors are all held is no case for
        it."""
        broadcaster = filled(10, history=5)
        for last_id in ("1-1", f"{TICK + 4000}-7", f"{TICK}-99"):
            kind, data, last = read_all(broadcaster, last_event_id=last_id)[0]
            self.assertEqual((kind, data["reason"], last), ("reset", "expired", ""))
            self.assertEqual(len(ids(read_all(broadcaster, last_event_id=last_id))), 40)
        for last_id in (f"{TICK + 4000}-8", f"{TICK + 5000}-1"):
            self.assertEqual(read_all(broadcaster, last_event_id=last_id)[0][0], "status")
        just_started = filled(3)
        self.assertEqual(
            read_all(just_started, last_event_id=f"{TICK - 1000}-8")[0][1]["reason"], "expired"
        )
        just_started.publish_tick(TICK + 60_000, events_of(0), anew=True)
        self.assertEqual(
            read_all(just_started, last_event_id=f"{TICK + 2000}-8")[0][1]["reason"], "expired"
        )

    def test_an_id_from_before_the_first_tick_has_expired(self):
        """A server that starts with less history than the client missed says so; one with all of
        it does not."""
        for last_id, first in (
            (f"{TICK - 1000}-8", "reset"),
            (f"{TICK - 1}-1", "reset"),
            (f"{TICK}-0", "status"),
        ):
            self.assertEqual(read_all(filled(3), last_event_id=last_id)[0][0], first, last_id)

    def test_after_a_gap_every_client_is_told_and_goes_on(self):
        """`reset` comes in the open stream, before what is made up for; nothing old comes back."""
        self.setting(QUEUE_FRAMES=3)
        broadcaster = filled(3)
        filters = FILTERS[:4]  # the others do not ask for what is published here
        with contextlib.ExitStack() as stack:

            def subscribe(**options):
                return [
                    stack.enter_context(broadcaster.subscribe(wanted, **options))
                    for wanted in filters
                ]

            live, full, behind = subscribe(), subscribe(), subscribe(history=1000)
            for subscription in live + full:
                drain(subscription)
            for n in range(3, 6):
                broadcaster.publish_tick(TICK + n * 1000, events_of(0))
                for subscription in live:
                    drain(subscription)
            broadcaster.publish_tick(TICK + 6000, [Event("deploy", {})])
            broadcaster.publish_tick(TICK + 3_600_000, [], anew=True)
            self.assertEqual(broadcaster.metric_names(), [])
            (*_, (_, shown, _)) = parse(drain(stack.enter_context(broadcaster.subscribe())))
            self.assertEqual(shown["types"], [])
            broadcaster.publish(alert("info", "in between"), metric("cpu_usage", 1))
            for n in (1, 2):
                broadcaster.publish_tick(TICK + 3_600_000 + n * 1000, events_of(0))
            for subscription in live + full + behind:
                events = parse(drain(subscription))
                kinds = [kind for kind, _, _ in events]
                queued = ids(events[: kinds.index("reset")])
                self.assertEqual(
                    len({last.partition("-")[0] for last in queued}), 3 * (subscription in full)
                )
                events = events[kinds.index("reset") :]
                self.assertEqual(events[0][1]["reason"], "expired")
                self.assertEqual(kinds.count("reset"), 1)
                events = [event for event in events if event[0] in ("alert", "metric")]
                expected = read_all(broadcaster, subscription.wanted, history=7200)
                self.assertEqual(events, [event for event in expected if event[0] != "status"])
                self.assertIn(events[0][1].get("message", "in between"), "in between")
                found = [tuple(map(int, last.split("-"))) for last in ids(events)]
                self.assertEqual(found, sorted(set(found)))
                self.assertEqual(subscription.reason, "")
        for last_id in (f"{TICK + 5000}-8", f"{TICK + 3_000_000}-1"):
            events = read_all(broadcaster, last_event_id=last_id)
            self.assertEqual(events[0][1].get("reason"), "expired")
            self.assertEqual(len(ids(events)), 18)

    def test_an_unknown_id_is_told_and_everything_held_follows(self):
        """What is no ID, or lies more than a minute ahead, is never an error: that would stop a
        browser for good."""
        with mock.patch.object(sse.time, "time", lambda: (TICK + 2500) / 1000):
            broadcaster = filled(3)
            for last_id in (
                "x",
                "1",
                "-",
                "1-",
                "1-x",
                "٣-١",
                "1" * 5000 + "-1",
                f"{TICK + 2500 + 60_001}-1",
                "-1-1",
                " ",
            ):
                kind, data, _ = read_all(broadcaster, last_event_id=last_id)[0]
                self.assertEqual((kind, data["reason"]), ("reset", "unknown"), last_id)
                self.assertEqual(len(ids(read_all(broadcaster, last_event_id=last_id))), 24)

    def test_an_id_of_now_is_known_whatever_clock_was_wrong(self):
        """Ours was set back, and the ticks went on; or ours goes right, and the ticks are late."""
        for now, last_id in (
            (TICK - 3_600_000, f"{TICK + 2000}-8"),
            (TICK + 100_000, f"{TICK + 100_000}-1"),
        ):
            with mock.patch.object(sse.time, "time", lambda now=now: now / 1000):
                events = read_all(filled(3), last_event_id=last_id)
                self.assertEqual([kind for kind, _, _ in events], ["status"], last_id)
        # A machine that thinks it is 1970, until its clock is set.
        broadcaster = sse.Broadcaster(1.0, 60)
        broadcaster.publish_tick(5000, [])
        broadcaster.publish(alert("info", "x"))
        last_id = broadcaster.snapshot()["last_event_id"]
        self.assertEqual(read_all(broadcaster, last_event_id=last_id)[0][0], "status", last_id)

    def test_an_id_a_little_ahead_waits_for_its_moment(self):
        """A client that comes from a server whose clock is ahead gets nothing twice, and its
        status all the while."""
        with mock.patch.object(sse.time, "time", lambda: (TICK + 2500) / 1000):
            broadcaster = filled(3)
            with broadcaster.subscribe(last_event_id=f"{TICK + 4000}-3") as subscription:
                wire = drain(subscription)
                for n in range(3, 7):
                    broadcaster.publish_tick(TICK + n * 1000, events_of(0))
                events = parse(wire + drain(subscription))
        self.assertEqual(
            ids(events)[:6], [f"{TICK + 4000}-{n}" for n in range(4, 9)] + [f"{TICK + 5000}-1"]
        )
        self.assertEqual(len(ids(events)), 5 + 16)
        self.assertEqual([kind for kind, _, _ in events].count("status"), 5)

    def test_one_frame_for_each_filter(self):
        """Clients with the same filter get the very same bytes object; a tick is one frame."""
        broadcaster = filled(1)
        with contextlib.ExitStack() as stack:
            several = [
                stack.enter_context(broadcaster.subscribe(wanted, history=0))
                for wanted in FILTERS[:2] * 3
            ]
            for subscription in several:
                drain(subscription)
            broadcaster.publish_tick(TICK + 1000, events_of(0))
            frames = [next(subscription.frames()) for subscription in several]
        self.assertEqual(len({id(frame) for frame in frames}), 2)
        self.assertEqual(len(parse(frames[0])), 9)

    def test_who_joins_while_publishing_runs_sees_every_event_once(self):
        """History and registration are one step: whatever the timing, no gap and no double."""
        broadcaster, done = filled(3, history=5, alerts=0, count=3), threading.Event()

        def publish():
            for n in itertools.count(3):
                if done.is_set():
                    return
                broadcaster.publish_tick(TICK + n * 1000, events_of(0, 3, 0))

        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)  # so that the threads get into each other's way
        publisher = threading.Thread(target=publish)
        joined = 0
        with mock.patch.object(sse, "QUEUE_FRAMES", 3):
            publisher.start()
            try:
                for _ in range(500):
                    with broadcaster.subscribe(history=2) as subscription:
                        frames, got = subscription.frames(), b""
                        while got.count(b"-3\n") < 5:
                            got += next(frames)
                    if b"event: reset" in got:  # it did not keep up: that is said, and tested
                        continue
                    joined += 1
                    found = [tuple(map(int, text.split("-"))) for text in ids(parse(got))]
                    first = found[0][0]
                    self.assertEqual(
                        found, [(first + n // 3 * 1000, n % 3 + 1) for n in range(len(found))]
                    )
            finally:
                done.set()
                publisher.join(DEADLINE)
        self.assertGreater(joined, 50)

    def test_whatever_threads_do_at_the_same_time(self):
        """Several publish, ticks pass, and clients join, read, are slow, are ended, and resume:
        each has each event once, in order."""
        self.setting(QUEUE_FRAMES=3, HANDFUL_EVENTS=5, HEARTBEAT_SECONDS=6 * DEADLINE)
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-5)  # so that the threads get into each other's way
        broadcaster, done = sse.Broadcaster(1.0, 3600), threading.Event()
        self.addCleanup(broadcaster.close)
        broadcaster.publish_tick(TICK, [])
        open_now, got, ends = {}, {}, []

        def publish(seed):
            chance = random.Random(seed)
            for _ in range(150):
                broadcaster.publish(*numbered(0, chance.choice((1, 1, 4))))
                done.wait(chance.choice((0, 0, 0.002)))

        def pass_time():
            for n in range(1, 60):
                broadcaster.publish_tick(TICK + n * 1000, events_of(0))
                done.wait(0.005)

        def end_streams():
            chance = random.Random(7)
            while not done.wait(0.001):
                if some := list(open_now.values()):
                    broadcaster.end(chance.choice(some), "closed")

        def read(seed):
            chance, found, last_seen = random.Random(seed), [], ""
            while True:
                with broadcaster.subscribe(ALERTS, last_seen, history=3600) as subscription:
                    open_now[seed] = subscription
                    stop_at = chance.choice((3, 30, 10_000))
                    for count, frame in enumerate(subscription.frames()):
                        found += parse(frame)
                        if count == stop_at or (found and found[-1][1]["message"] == "the last"):
                            break
                        if seed % 4 == 0:
                            done.wait(0.001)  # a slow reader
                    else:
                        ends.append(subscription.reason)
                    del open_now[seed]
                if found:
                    last_seen = found[-1][2]
                    if found[-1][1]["message"] == "the last":
                        got[seed] = found
                        return

        def start(work, *arguments):
            thread = threading.Thread(target=work, args=arguments, daemon=True)
            thread.start()
            return thread

        readers = [start(read, seed) for seed in range(8)]
        ending = start(end_streams)
        join_all([*(start(publish, seed) for seed in range(3)), start(pass_time)])
        broadcaster.publish(alert("info", "the last"))
        done.set()
        join_all([*readers, ending])
        everything = read_all(broadcaster, ALERTS, history=3600)
        self.assertGreater(len(everything), 59 + 3 * 150)
        found = [tuple(map(int, last.split("-"))) for last in ids(everything)]
        self.assertEqual(found, sorted(set(found)))
        self.assertEqual(sorted(got), list(range(8)))
        for seed, events in got.items():
            self.assertEqual(ids(events), ids(everything), seed)
        self.assertEqual(set(ends), {"closed"})

    def test_after_the_end(self):
        """Publishing raises, with a sentence; a subscription that comes late ends at once."""
        broadcaster = filled(1)
        with broadcaster.subscribe() as subscription:
            broadcaster.close()
            self.assertEqual(subscription.reason, "shutdown")
        with self.assertRaisesRegex(RuntimeError, "ended"):
            broadcaster.publish(alert("info", "x"))
        with broadcaster.subscribe() as late:
            self.assertEqual(late.reason, "shutdown")
            list(late.frames())

    def test_what_is_published_at_once_is_one_batch(self):
        """One frame of one moment, with IDs in a row; of nothing, nothing."""
        broadcaster = filled(1)
        with broadcaster.subscribe(Filter(frozenset({"metric", "alert"}))) as subscription:
            drain(subscription)
            self.setting(HEARTBEAT_SECONDS=0.0001)
            broadcaster.publish()
            self.assertEqual(next(subscription.frames()), sse.HEARTBEAT)
            broadcaster.publish(metric("a", 1), alert("info", "x"), metric("b", 2))
            broadcaster.publish(metric("c", 3))
            events = parse(next(subscription.frames()))
        self.assertEqual([data.get("name") for _, data, _ in events], ["a", None, "b"])
        self.assertEqual(len({data["timestamp"] for _, data, _ in events}), 1)
        found = [int(last.partition("-")[2]) for last in ids(events)]
        self.assertEqual(found, list(range(found[0], found[0] + 3)))

    def test_a_batch_that_cannot_be_published_is_not_published_in_part(self):
        """What is no event raises TypeError, and names metric() and alert(). A metric's moment
        before its newest raises ValueError."""
        broadcaster = filled(1)
        broadcaster.publish(metric("x", 1, at=TICK + 500), alert("info", "x", at=TICK + 500))
        with broadcaster.subscribe(history=0) as subscription:
            drain(subscription)
            before = broadcaster.snapshot()
            good = metric("new", 1), Event("deploy", {})
            for wrong, error, words in (
                (["text"], TypeError, "metric\\(\\) and alert\\(\\)"),
                ([{"type": "metric"}], TypeError, "metric\\(\\) and alert\\(\\)"),
                ([[metric("x", 1)]], TypeError, "metric\\(\\) and alert\\(\\)"),
                ([metric("x", 2, at=TICK + 499.9)], ValueError, "later moment"),
                ([metric("y", 2, at=9), metric("y", 2, at=8)], ValueError, "later moment"),
            ):
                with self.assertRaisesRegex(error, words):
                    broadcaster.publish(*good, *wrong)
            after = broadcaster.snapshot()
            for name in ("events_published", "last_event_id"):
                self.assertEqual(before[name], after[name])
            self.assertNotIn("new", broadcaster.metric_names())
            self.assertEqual(drain(subscription), b"")
            # The moment of the newest is early enough, and an alert may be of any.
            broadcaster.publish(metric("x", 2, at=TICK + 500), alert("info", "x", at=5), *good)
            kinds = [kind for kind, _, _ in parse(drain(subscription))]
        self.assertEqual(kinds, ["metric", "alert", "metric", "panels", "deploy"])

    def test_leaving_leaves_nothing(self):
        """When the last client of a filter has gone, nothing of it is kept."""
        broadcaster = filled(1)
        with broadcaster.subscribe(), broadcaster.subscribe(FILTERS[3]):
            self.assertEqual(broadcaster.snapshot()["connections"], 2)
        self.assertEqual(broadcaster.snapshot()["connections"], 0)


# --- Generator thread ----------------------------------------------------------------------------


class Counting:
    """A source that counts its ticks, and does what it is told."""

    def __init__(self, replayable=False, act=lambda tick: [metric("own", 1)]):
        self.replayable, self.act, self.ticks, self.arrived = (
            replayable,
            act,
            [],
            threading.Semaphore(0),
        )

    def events_at(self, tick):
        self.ticks.append(tick)
        self.arrived.release()
        return self.act(tick)

    def wait_for(self, ticks):
        for _ in range(ticks):
            assert self.arrived.acquire(timeout=DEADLINE), "no tick came"


class FakeTime:
    """Wall clock and steady clock, moved by the test; what waits in between is real."""

    def __init__(self):
        self.wall, self.steady, self.start = 0.0, 0.0, time.monotonic()
        self.asked_at = 0.0

    def is_awaited(self):
        """Whether nobody has asked for the time for a moment: who lives by it sleeps."""
        return self.asked_at and time.monotonic() > self.asked_at + 0.1

    def time(self):
        self.asked_at = time.monotonic()
        return TICK / 1000 + time.monotonic() - self.start + self.wall

    def monotonic(self):
        return time.monotonic() + self.steady

    def take(self, seconds):
        """Time passes on both, as while a source works."""
        self.wall += seconds
        self.steady += seconds

    def __getattr__(self, name):
        return getattr(time, name)


def thread_names():
    return [thread.name for thread in threading.enumerate()]


@contextlib.contextmanager
def generating(broadcaster, *sources):
    """A generator thread for the length of a `with` block."""
    generator = sse.Generator(broadcaster, sources)
    generator.start()
    try:
        yield
    finally:
        generator.stop()


class TheGenerator(Promises):
    def test_history_is_filled_from_replayable_sources_alone(self):
        """At the start it asks a source that depends on the tick alone for the whole history, any
        other for nothing."""
        simulated, own = Counting(True), Counting(False, lambda tick: [metric("live", 1)])
        broadcaster, clock = sse.Broadcaster(0.2, 4), FakeTime()
        clock.time = lambda: TICK / 1000  # it stands still, so that no tick comes yet
        with mock.patch.object(sse, "time", clock), generating(broadcaster, own, simulated):
            held = [int(last.partition("-")[0]) for last in ids(read_all(broadcaster, history=60))]
            self.assertEqual(held, list(range(held[0], held[0] + 4000, 200)))
            self.assertEqual(held[0] % 200, 0)
            self.assertEqual(simulated.ticks[-20:], held)
            del clock.time
            own.wait_for(1)
            self.assertTrue(eventually(lambda: broadcaster.snapshot()["events_published"]))
        newest = [data["name"] for kind, data, _ in read_all(broadcaster) if kind == "metric"]
        self.assertEqual(
            newest, ["own", "live"]
        )  # replayable ones first: their IDs are the same after a restart

    def test_a_server_that_starts_resumes_what_one_that_ran_on_would(self):
        """The last ID of the tick before the oldest that is held misses nothing, whatever the
        history."""
        clock = FakeTime()
        clock.time = lambda: TICK / 1000  # it stands still, so that no tick comes
        for history in (0, 0.5, 3):
            broadcaster = sse.Broadcaster(1.0, history)
            with mock.patch.object(sse, "time", clock), generating(broadcaster, Counting(True)):
                first = int(ids(read_all(broadcaster, history=60))[0].partition("-")[0])
                self.assertEqual(
                    read_all(broadcaster, last_event_id=f"{first - 1000}-1")[0][0],
                    "status",
                    history,
                )
                self.assertEqual(
                    read_all(broadcaster, last_event_id=f"{first - 1000}-0")[0][0], "reset", history
                )

    def test_what_only_a_past_run_knew_has_expired(self):
        """Where no source can tell of the past, an ID from before the start is answered by
        `reset`, whatever the history."""
        broadcaster = sse.Broadcaster(1.0, 300)
        with generating(broadcaster, Counting()):
            events = read_all(broadcaster, last_event_id=f"{int(time.time()) * 1000 - 20_000}-1")
        self.assertEqual((events[0][0], events[0][1]["reason"]), ("reset", "expired"))

    def test_a_source_that_raises_is_logged_and_left_out(self):
        """The traceback is logged, the tick goes on without its events, and the next tick comes."""
        broken, good = Counting(act=lambda tick: 1 / 0), Counting()
        strange = Counting(act=lambda tick: ["no event"])
        broadcaster = sse.Broadcaster(0.05, 0)
        with (
            broadcaster.subscribe() as subscription,
            generating(broadcaster, broken, strange, good),
        ):
            drain(subscription)
            broken.wait_for(3)
            good.wait_for(3)
            events = parse(drain(subscription))
        self.assertEqual({data["name"] for kind, data, _ in events if kind == "metric"}, {"own"})
        self.assertIn("status", [kind for kind, _, _ in events])
        found = self.expect_logged("left out")
        self.assertLessEqual(
            {ZeroDivisionError, TypeError}, {record.exc_info[0] for record in found}
        )

    def test_a_source_with_a_moment_before_its_newest_is_logged_and_left_out(self):
        """It alone: what else has a moment of its own is told, and so is the next tick."""
        moments = itertools.count(TICK, -1000)
        late = Counting(
            act=lambda tick: [
                metric("late", 1, at=next(moments)),
                metric("in_time", 1, at=tick),
            ]
        )
        broadcaster = sse.Broadcaster(0.05, 60)
        with generating(broadcaster, late, Counting()):
            late.wait_for(5)
        events = read_all(broadcaster, history=60)
        names = [data["name"] for kind, data, _ in events if kind == "metric"]
        self.assertEqual(names.count("late"), 1)
        self.assertGreaterEqual(names.count("in_time"), 4)
        self.assertGreaterEqual(names.count("own"), 4)
        self.expect_logged("late has a value of a later moment")

    def test_a_source_that_holds_up_the_ticks_is_named(self):
        """In one line of the log, however long it goes on, and again when it was fast between. One
        that is slow for a tick or two may just have waited for the processor."""
        pace, clock, lines = iter("ss sssss ss sss "), FakeTime(), []
        clock.take(0.9)  # the first tick is soon

        class Crawling:
            def __repr__(self):
                return "the crawling source"

            def events_at(self, tick):
                lines.append(len(list(named())))
                clock.take(1.1 if next(pace, " ") == "s" else 0)
                return []

        def named():
            return (line for line in self.log if "crawling" in line.getMessage())

        # Another takes a little less than the interval, so that the next tick comes at once.
        other = Counting(act=lambda tick: clock.take(0.98) or [])
        with (
            mock.patch.object(sse, "time", clock),
            generating(sse.Broadcaster(1.0, 0), Crawling(), other),
        ):
            other.wait_for(17)
        self.assertEqual(lines[:17], [0] * 6 + [1] * 9 + [2] * 2)
        (line, _) = self.expect_logged("the crawling source takes 1.")
        self.assertIn("s a tick: ticks are late", line.getMessage())
        self.assertEqual(line.levelno, logging.WARNING)

    def test_a_source_that_never_comes_back_is_named(self):
        """Once, after STUCK_SECONDS. Meanwhile publish() goes on, and forgets what is older than
        the history. What is not is still held when the source comes back."""
        self.setting(STUCK_SECONDS=0.2, WATCH_SECONDS=0.05)
        asked, back = threading.Event(), threading.Event()
        self.addCleanup(back.set)

        class Hanging:
            def __repr__(self):
                return "the hanging source"

            def events_at(self, tick):
                asked.set()
                back.wait()
                return []

        clock = FakeTime()
        options = {"port": 0, "interval": 0.2, "history": 5, "sources": [Hanging()]}
        server = self.serve(0, sse.DashboardServer, **options)
        self.assertTrue(asked.wait(DEADLINE))
        self.assertTrue(eventually(lambda: self.log))
        with mock.patch.object(sse, "time", clock):
            for n in range(100):
                clock.take(1)
                server.publish(metric(f"m{n}", n))
            names = server.broadcaster.metric_names()
            stream = self.stream(server, "/api/events/all?history=5")
            stream.until(lambda stream: "m99" in str(stream.events))
            back.set()
            known = len(stream.events)
            stream.until(lambda stream: stream.events[known + 2 :])  # of the ticks now
        self.assertEqual([kind for kind, _, _ in stream.events].count("reset"), 0)
        self.assertEqual(server.broadcaster.metric_names()[-1], "m99")
        self.assertEqual(names[-1], "m99")
        self.assertLess(len(names), 10)
        (_,) = self.expect_logged("the hanging source has been busy")

    def test_what_no_source_should_do_ends_nothing(self):
        """SystemExit, or an event that cannot be encoded after all: the next tick comes."""

        class Unsendable(Event):
            def encode(self, moment, event_id=""):
                raise ZeroDivisionError("event")

        def cancelled(tick):
            raise asyncio.CancelledError  # like SystemExit it is no Exception

        broadcaster = sse.Broadcaster(0.05, 0)
        for leaving in (Counting(act=lambda tick: sys.exit(1)), Counting(act=cancelled)):
            with generating(broadcaster, leaving):
                leaving.wait_for(3)
        unsendable = Counting(act=lambda tick: [Unsendable("x", {})])
        with generating(broadcaster, unsendable):
            unsendable.wait_for(3)
        self.expect_logged("left out")
        self.expect_logged("could not be published")

    def test_a_signal_ends_the_filling_of_history(self):
        """Ctrl-C while a long history is computed in the main thread is no fault of a source: it
        comes through."""

        def interrupted(tick):
            raise KeyboardInterrupt

        with self.assertRaises(KeyboardInterrupt):
            sse.Generator(sse.Broadcaster(1.0, 10), [Counting(True, interrupted)]).start()

    def test_sources_are_asked_without_the_lock(self):
        """While a source computes, other threads may publish and subscribe, also while history is
        filled."""
        broadcaster, subscribed = filled(1), []

        def subscribe(tick):
            other = threading.Thread(
                target=lambda: subscribed.extend(read_all(broadcaster)), daemon=True
            )
            other.start()
            other.join(DEADLINE)
            return []

        with generating(broadcaster, Counting(True, subscribe)):
            self.assertTrue(subscribed)

    def test_late_ticks_are_made_up_for(self):
        """After a pause up to a minute, or as far as history goes, no tick is missing.

        A source that cannot tell of the past is asked for the newest tick alone."""
        for history, pause in ((5, 20), (100, 90)):
            clock, source, own = FakeTime(), Counting(True), Counting()
            broadcaster = sse.Broadcaster(0.05, history)
            with (
                mock.patch.object(sse, "time", clock),
                generating(broadcaster, own, source),
                broadcaster.subscribe(Filter(frozenset({"metric"}))) as subscription,
            ):
                own.wait_for(1)
                wire, before = drain(subscription), broadcaster_tick(broadcaster)
                clock.wall += pause
                made_up = before + pause * 1000
                self.assertTrue(eventually(lambda: broadcaster_tick(broadcaster) >= made_up))
                wire += drain(subscription)
            self.assertEqual({b - a for a, b in itertools.pairwise(source.ticks)}, {50})
            self.assertIn(pause, [(b - a) // 1000 for a, b in itertools.pairwise(own.ticks)])
            self.assertEqual(b"event: reset" in wire, history < pause)
            streamed = sorted({int(last.partition("-")[0]) for last in ids(parse(wire))})
            steps = {b - a for a, b in itertools.pairwise(streamed)}
            self.assertEqual(steps == {50}, history > pause, steps)

    def test_it_can_be_stopped_in_the_middle_of_many_late_ticks(self):
        """The tick that a source is busy with is the last."""
        entered, gate = threading.Semaphore(0), threading.Semaphore(0)

        def be_busy(tick):
            entered.release()
            gate.acquire(timeout=DEADLINE)
            return []

        clock, source = FakeTime(), Counting(True)
        with mock.patch.object(sse, "time", clock):
            with generating(sse.Broadcaster(0.05, 0), source):
                source.act = be_busy
                self.assertTrue(entered.acquire(timeout=DEADLINE))
                clock.wall += 50
                gate.release()
                self.assertTrue(entered.acquire(timeout=DEADLINE))
            last = source.ticks[-1]
            gate.release(5)
            self.assertTrue(eventually(lambda: "generator" not in thread_names()))
        self.assertEqual(source.ticks[-1], last)

    def test_after_a_long_pause_every_client_is_told(self):
        """What is not made up for is said, by `reset` in the open stream; what is, comes then."""
        clock = FakeTime()
        with mock.patch.object(sse, "time", clock):
            source, broadcaster = Counting(True), sse.Broadcaster(0.05, 2)
            with broadcaster.subscribe() as subscription, generating(broadcaster, source):
                source.wait_for(45)
                drain(subscription)
                last = broadcaster.snapshot()["last_event_id"]
                clock.wall += 3600
                slept_until = clock.time() * 1000
                self.assertTrue(
                    eventually(lambda: broadcaster_tick(broadcaster) > clock.time() * 1000 - 500)
                )
                events = parse(drain(subscription))
                reasons = [data["reason"] for kind, data, _ in events if kind == "reset"]
                self.assertEqual(reasons, ["expired"])
                self.assertEqual(subscription.reason, "")
                told = [kind for kind, _, _ in events].index("reset")
                after = [int(last.partition("-")[0]) for last in ids(events[told:])]
                self.assertEqual({b - a for a, b in itertools.pairwise(after)}, {50})
                again = read_all(broadcaster, last_event_id=last)
                self.assertEqual(again[0][1]["reason"], "expired")
        made_up = [tick for tick in source.ticks if tick > slept_until - 1_000_000]
        self.assertGreater(made_up[0], slept_until - 2000)  # what the history spans, no more

    def test_a_stream_stays_open_while_a_laptop_sleeps(self):
        """On the wire: what came before the sleep, `reset`, the ticks that the history spans, and
        then those of now. Each comes once, on one connection."""
        clock = FakeTime()
        with mock.patch.object(sse, "time", clock):
            server = sse.DashboardServer(port=0, interval=0.2, history=40, sources=[Counting(True)])
            with server, Stream(server.server_address) as stream:
                stream.until(lambda stream: ids(stream.events))
                clock.wall += 3600
                slept_until = clock.time() * 1000
                events = stream.until(
                    lambda stream: (
                        (last := ids(stream.events)[-1:])
                        and int(last[0].partition("-")[0]) > slept_until + 500
                    )
                )
        kinds = [kind for kind, _, _ in events]
        self.assertEqual(kinds.count("reset"), 1)
        told = kinds.index("reset")
        self.assertEqual(events[told][1]["reason"], "expired")
        before, after = (
            [int(last.partition("-")[0]) for last in ids(part)]
            for part in (events[:told], events[told:])
        )
        self.assertLess(max(before), slept_until - 3_500_000)
        self.assertEqual({b - a for a, b in itertools.pairwise(before)} - {200}, set())
        self.assertEqual({b - a for a, b in itertools.pairwise(after)}, {200})
        self.assertAlmostEqual(after[0], slept_until - 40_000, delta=2000)

    def test_a_clock_that_is_set_back_stops_nothing(self):
        """Ticks go on at their pace, and their IDs still increase."""
        clock = FakeTime()
        with mock.patch.object(sse, "time", clock):
            source, broadcaster = Counting(True), sse.Broadcaster(0.05, 1)
            with generating(broadcaster, source):
                source.wait_for(25)
                clock.wall -= 3600
                source.wait_for(6)
        self.assertEqual({b - a for a, b in itertools.pairwise(source.ticks)}, {50})

    def test_a_clock_that_is_set_forward_is_noticed_at_once(self):
        """A tick that a clock set forward makes due comes within a second, at any interval."""
        clock, source = FakeTime(), Counting()
        with mock.patch.object(sse, "time", clock), generating(sse.Broadcaster(60.0, 0), source):
            self.assertTrue(eventually(clock.is_awaited))
            clock.wall += 60
            source.wait_for(1)

    def test_the_thread_ends_when_it_is_told(self):
        """stop() ends the generator thread, also in the middle of a long interval."""
        with generating(sse.Broadcaster(60.0, 0), Counting()):
            self.assertIn("generator", thread_names())
        self.assertNotIn("generator", thread_names())


# --- Handler -------------------------------------------------------------------------------------

STREAMS, ROUTES = tuple(sse.STREAMS), sse.ROUTES
JSON_TYPE = "application/json"


def request(line=b"GET /api/status HTTP/1.1", *fields, host=b"Host: x"):
    """The bytes of a request: valid, but for what the caller puts into it."""
    return b"\r\n".join([line, host, *fields, b"", b""])


def field(*lines):
    return request(b"GET /api/status HTTP/1.1", *lines)


def host(value, version=b"1.1"):
    return request(b"GET /api/status HTTP/" + version, host=b"Host: " + value)


OTHER_HEAD = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"  # behind a first request, as its body

# What a server must say to bytes of every kind: the status, the section of the RFC, the bytes.
# "9112" is HTTP/1.1, "9110" HTTP semantics.
ANSWERS = (
    # Line ends, and what comes before the request.
    (200, "9112 2.2", b"\r\n" + request()),
    (200, "9112 2.2", b"\n" + request()),
    (200, "9112 2.2", request().replace(b"\r\n", b"\n")),
    (400, "9112 2.2", b"\r\n\r\n"),
    (400, "9112 2.2", b"\r\n\r\n" + request()),
    (400, "9112 2.2", b"\r" + request()),
    (400, "9112 2.2", b" \r\n"),
    (400, "9112 2.2", b" " + request()),
    (400, "9112 2.2", b"\t" + request()),
    (400, "9112 2.2", b"\0"),
    (400, "9112 2.2", b"\xef\xbb\xbf" + request()),
    (400, "9112 2.2", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"),  # how TLS begins: no line end
    (400, "9112 2.2", b"\x80\x2e\x01\x00\x02"),  # how an older TLS does
    (400, "9112 2.2", request().replace(b"\r\n", b"\r") + b"\n"),
    (400, "9112 2.2", request().replace(b"\r\n", b"\r\r\n")),
    (400, "9112 2.2", request().replace(b"\r\n\r\n", b"\r\n\r\r\n\r\n")),
    (400, "9112 2.2", request(b"GET /api/status HTTP/1.1\rX: y")),
    (400, "9112 2.2", request(b"GET /api/status\r HTTP/1.1")),
    (400, "9112 2.2", field(b"X: a\rLast-Event-ID: 1-1")),
    (400, "9112 2.2", field(b"X: a\rb")),
    (400, "9112 2.2", field(b"X: a\r")),
    (400, "9112 2.2", field(b"X: \r")),
    (400, "9112 2.2", field(b"X\r: a")),
    (400, "9112 2.2", field(b"X: a\n\rY: b")),
    (400, "9112 2.2", field(b"X:\rTransfer-Encoding: chunked")),
    (400, "9112 2.2", b"GET /api/status HTTP/1.1\r\nX: a\r\r\nHost: b\r\n\r\n"),
    (400, "9112 2.2", b"GET /api/status HTTP/1.1\r\n Host: x\r\n\r\n"),
    (400, "9112 2.2", b"GET /api/status HTTP/1.1\r\n\tX: y\r\nHost: x\r\n\r\n"),
    # Versions.
    (200, "9112 2.3", b"GET /api/status HTTP/1.0\r\n\r\n"),
    (200, "9110 2.5", request(b"GET /api/status HTTP/1.2")),
    (400, "9112 2.3", b"GET /api/status\r\n"),  # HTTP/0.9, and the client waits
    (400, "9112 2.3", request(b"GET /api/status HTTP/01.01")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/01.1")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/1")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/1.")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/1.10")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/11.1")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/1,1")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/ 1.1")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/+1.1")),
    (400, "9112 2.3", request(b"GET /api/status HTTP/\xb2.1")),
    (400, "9112 2.3", request(b"GET /api/status http/1.1")),
    (400, "9112 2.3", request(b"GET /api/status HTTPS/1.1")),
    (400, "9112 2.3", request(b"GET /api/status ICY/1.1")),
    (400, "9112 2.3", request(b"GET /api/status IHTTP/1.1")),
    (400, "9112 2.3", request(b"OPTIONS sip:x SIP/2.0")),
    (505, "9110 15.6.6", request(b"GET /api/status HTTP/0.9")),
    (505, "9110 15.6.6", request(b"GET /api/status HTTP/2.0")),
    (505, "9110 15.6.6", request(b"GET /api/status HTTP/9.9")),
    (505, "9113 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    # Request lines.
    (400, "9112 3", b"garbage\r\n"),
    (400, "9112 3", b"GET\r\n"),
    (400, "9112 3", b"GET HTTP/1.1\r\nHost: x\r\n\r\n"),
    (400, "9112 3", b"From nobody\r\n" + request()),
    (400, "9112 3", b"HTTP/1.1 200 OK\r\n\r\n"),
    (400, "9112 3", request(b"GET/api/status HTTP/1.1")),
    (400, "9112 3", request(b"/api/status HTTP/1.1")),
    (400, "9112 3", request(b" / HTTP/1.1")),
    (400, "9112 3", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + request()),
    (400, "9112 3", request(b"GET  /api/status HTTP/1.1")),
    (400, "9112 3", request(b"GET /api/status  HTTP/1.1")),
    (400, "9112 3", request(b"GET /api/status HTTP/1.1 ")),
    (400, "9112 3", request(b"GET\t/api/status\tHTTP/1.1")),
    (400, "9112 3", request(b"GET /api/status\x0bHTTP/1.1")),
    (400, "9112 3", request(b"GET /api/status x HTTP/1.1")),
    (414, "9112 3", request(b"GET /" + b"x" * 70_000 + b" HTTP/1.1")),
    (414, "9112 3", b"A" * 70_000),
    (414, "9112 3", b"\r\n" + b"A" * 70_000),
    # Methods.
    (400, "9110 9.1", request(b"GET\0 /api/status HTTP/1.1")),
    (400, "9110 9.1", request(b'G=":<>(e) /api/status HTTP/1.1')),
    (400, "9110 9.1", request(b"G\xc3\x89T /api/status HTTP/1.1")),
    (400, "9110 9.1", request(b"(GET) /api/status HTTP/1.1")),
    (400, "9110 9.1", request(b"GET, /api/status HTTP/1.1")),
    (405, "9110 9.1", request(b"get /api/status HTTP/1.1")),
    (405, "9110 9.1", request(b"!#$%&'*+-.^_`|~ /api/status HTTP/1.1")),
    (405, "9110 9.3.8", request(b"TRACE /api/status HTTP/1.1")),
    (405, "9110 9.3.6", request(b"CONNECT /api/status HTTP/1.1")),
    (204, "9110 9.3.7", request(b"OPTIONS * HTTP/1.1")),
    # Targets.
    (200, "9112 3.2.1", request(b"GET /api/%73tatus?a=[]{}|^`\\ HTTP/1.1")),
    (400, "9112 3.2", request(b"GET /api/status\0 HTTP/1.1")),
    (400, "9112 3.2", request(b"GET /api/status?\x7f HTTP/1.1")),
    (400, "9112 3.2", request(b"GET /api/status?\xc3\xa9 HTTP/1.1")),
    (400, "9112 3.2", request(b"GET /api/status?\x1b[31m HTTP/1.1")),
    (400, "9112 3.2", request(b"GET /api/status#x HTTP/1.1")),
    (400, "9112 3.2", request(b"GET api/status HTTP/1.1")),
    (400, "9112 3.2", request(b"GET ?x HTTP/1.1")),
    (400, "9112 3.2", request(b"GET \\ HTTP/1.1")),
    (200, "9112 3.2.2", request(b"GET http://x/api/status HTTP/1.1")),
    (200, "9112 3.2.2", request(b"GET http://other/api/status HTTP/1.1")),
    (200, "9112 3.2.2", request(b"GET HTTPS://[::1]:80/api/status?x HTTP/1.1")),
    (200, "9112 3.2.2", request(b"GET http://x?y HTTP/1.1")),
    (400, "9110 4.2.1", request(b"GET http:///api/status HTTP/1.1")),
    (400, "9110 4.2.1", request(b"GET http://:80/api/status HTTP/1.1")),
    (400, "9110 4.2.1", request(b"GET http:/api/status HTTP/1.1")),
    (400, "9110 4.2.4", request(b"GET http://u:p@x/api/status HTTP/1.1")),
    (400, "9112 3.2.2", request(b"GET http://[/api/status HTTP/1.1")),
    (400, "9112 3.2.2", request(b"GET ftp://x/api/status HTTP/1.1")),
    (400, "9112 3.2.2", request(b"GET http://x:80x/api/status HTTP/1.1")),
    (400, "9112 3.2", b"GET http://x/api/status HTTP/1.1\r\n\r\n"),
    (200, "9112 3.2", b"GET http://x/api/status HTTP/1.0\r\n\r\n"),
    (400, "9112 3.2.3", request(b"CONNECT x:443 HTTP/1.1")),
    (400, "9112 3.2.4", request(b"GET * HTTP/1.1")),
    (400, "9112 3.2.4", request(b"POST * HTTP/1.1")),
    (400, "9112 3.2.4", request(b"OPTIONS *x HTTP/1.1")),
    # Host.
    (200, "9112 3.2", host(b"localhost:8000")),
    (200, "9112 3.2", host(b"[::1]:8000")),
    (200, "9112 3.2", host(b"[::ffff:127.0.0.1]")),
    (200, "9112 3.2", host(b"x:99999")),
    (200, "9112 3.2", host(b"a-b_c.%41:")),
    (200, "9110 5.6.3", host(b" \tx \t")),
    (200, "9112 3.3", host(b"")),
    (400, "9112 3.2", b"GET /api/status HTTP/1.1\r\n\r\n"),
    (400, "9112 3.2", b"GET /api/status HTTP/1.2\r\n\r\n"),
    (400, "9112 3.2", field(b"Host: x")),
    (400, "9112 3.2", field(b"HOST: y")),
    (400, "9112 3.2", request(b"GET /api/status HTTP/1.0", b"Host: y")),
    (400, "9112 3.2", host(b"###")),
    (400, "9112 3.2", host(b"###", b"1.0")),
    (400, "9112 3.2", host(b"user@host")),
    (400, "9112 3.2", host(b"host/path")),
    (400, "9112 3.2", host(b"http://host")),
    (400, "9112 3.2", host(b"a, b")),
    (400, "9112 3.2", host(b"a,b")),
    (400, "9112 3.2", host(b"a b")),
    (400, "9112 3.2", host(b"a?b")),
    (400, "9112 3.2", host(b"a%zz")),
    (400, "9112 3.2", host(b"a:80:80")),
    (400, "9112 3.2", host(b"a:b")),
    (400, "9112 3.2", host(b"::1")),
    (400, "9112 3.2", host(b"[::1")),
    (400, "9112 3.2", host(b"[::g]")),
    (400, "9112 3.2", host(b"[]")),
    (400, "9112 3.2", host(b"[::1]x")),
    (400, "3986 3.2.2", host(b"[1:2]")),
    (400, "9112 3.2", host(b"[::1%25lo]")),
    (400, "9112 3.2", host(b"x:+80")),
    (400, "9112 3.2", host(b'"x"')),
    (400, "9112 3.2", host(b"x\\y")),
    (400, "9112 3.2", host(b"\xc3\xa9")),
    # Header fields.
    (200, "9112 5", field(b"X:y")),
    (200, "9112 5", field(b"X:")),
    (200, "9110 5.5", field(b"X: \xc3\xa9\t\xff")),
    (200, "9110 5.6.3", field(b"X:" + b" \t" * 30_000 + b"y")),
    (200, "9110 5.6.2", field(b"!#$%&'*+-.^_`|~: x")),
    (400, "9112 5", field(b"junk")),
    (400, "9112 5", field(b": x")),
    (400, "9112 5.1", field(b"X : y")),
    (400, "9112 5.1", field(b"X\t: y")),
    (400, "9112 5.1", field(b"Transfer-Encoding : chunked")),
    (400, "9112 5.2", field(b"X: a", b" b")),
    (400, "9112 5.2", field(b"X", b" : b")),
    (400, "9112 5.2", field(b"Transfer-Encoding:", b" chunked")),
    (400, "9112 5.2", field(b"X: a", b"\tLast-Event-ID: 1-1")),
    (400, "9112 5.2", field(b"X: a", b" ")),
    (400, "9110 5.1", field(b"Bad[Name: v")),
    (400, "9110 5.1", field(b"(x): v")),
    (400, "9110 5.1", field(b"X\0: v")),
    (400, "9110 5.1", field(b"\xc3\xa9: v")),
    (400, "9110 5.1", field(b"X Y: v")),
    (400, "9110 5.1", field(b"X@: v")),
    (400, "9110 5.1", field(b'"X": v')),
    (400, "9110 5.5", field(b"X: a\0b")),
    (400, "9110 5.5", field(b"X: a\x01b")),
    (400, "9110 5.5", field(b"X: a\x0bb")),
    (400, "9110 5.5", field(b"X: a\x7fb")),
    (400, "9110 5.5", field(b"X: \x1b[31m")),
    (200, "9110 5.4", field(*[b"A: b"] * 99)),
    (431, "6585 5", field(*[b"A: b"] * 100)),
    (431, "6585 5", field(b"X: " + b"x" * 70_000)),
    (431, "6585 5", field(b"X" * 70_000 + b": x")),
    (431, "6585 5", field(*[b"X: " + b"x" * 9_000] * 9)),
    # Bodies: what says their length must be right, although none is read.
    (200, "9112 6.2", field(b"Content-Length: 5") + b"12345"),
    (200, "9112 6.2", field(b"Content-Length: 0")),
    (200, "9110 8.6", field(b"Content-Length: 5, 5") + b"12345"),
    (200, "9110 8.6", field(b"Content-Length: 005") + b"12345"),
    (200, "9110 8.6", field(b"Content-Length: 5", b"Content-Length: 5") + b"12345"),
    (200, "9110 8.6", field(b"Content-Length: " + b"9" * 40)),
    (200, "9110 5.6.3", field(b"Content-Length: \t5\t") + b"12345"),
    (400, "9112 6.3", field(b"Content-Length: abc")),
    (400, "9112 6.3", field(b"Content-Length: -1")),
    (400, "9112 6.3", field(b"Content-Length: -0")),
    (400, "9112 6.3", field(b"Content-Length: 0o5")),
    (400, "9112 6.3", field(b"Content-Length: 5;6")),
    (400, "9112 6.3", field(b"Content-Length: ,")),
    (400, "9112 6.3", field(b"Content-Length: +5")),
    (400, "9112 6.3", field(b"Content-Length: 1_0")),
    (400, "9112 6.3", field(b"Content-Length: 0x5")),
    (400, "9112 6.3", field(b"Content-Length: 5.0")),
    (400, "9112 6.3", field(b"Content-Length: 1 2")),
    (400, "9112 6.3", field(b"Content-Length:")),
    (400, "9112 6.3", field(b"Content-Length: \xb2")),
    (400, "9112 6.3", field(b"Content-Length: 5, 6")),
    (400, "9112 6.3", field(b"Content-Length: 5,")),
    (400, "9112 6.3", field(b"Content-Length: 5", b"Content-Length: 6")),
    (400, "9112 6.3", request(b"GET /api/status HTTP/1.0", b"Content-Length: abc")),
    (200, "9112 6.1", field(b"Transfer-Encoding: chunked") + b"0\r\n\r\n"),
    (200, "9112 7", field(b"TRANSFER-ENCODING: Chunked") + b"0\r\n\r\n"),
    (200, "9112 6.1", field(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n"),
    (200, "9110 5.6.1.2", field(b"Transfer-Encoding: , chunked,") + b"0\r\n\r\n"),
    (400, "9112 6.1", field(b"Transfer-Encoding:")),
    (400, "9112 6.1", field(b"Transfer-Encoding: chunked", b"Content-Length: 5")),
    (400, "9112 6.1", field(b"Content-Length: 5", b"Transfer-Encoding: xchunked")),
    (400, "9112 6.1", request(b"GET /api/status HTTP/1.0", b"Transfer-Encoding: chunked")),
    (400, "9112 6.1", field(b"Transfer-Encoding: chunked, chunked")),
    (400, "9112 6.1", field(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")),
    (400, "9112 6.1", field(b"Transfer-Encoding: \x0bchunked")),
    (400, "9112 6.1", field(b"Transfer-Encoding: chunked\0")),
    (400, "9112 6.3", field(b"Transfer-Encoding: gzip")),
    (400, "9112 6.3", field(b"Transfer-Encoding: chunked, gzip")),
    (501, "9112 6.1", field(b"Transfer-Encoding: foo, chunked")),
    (501, "9112 6.1", field(b"Transfer-Encoding: xchunked")),
    (501, "9112 7", field(b"Transfer-Encoding: identity")),
    (501, "9112 7", field(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity")),
    (501, "9112 7", field(b"Transfer-Encoding: \xa0chunked")),
    (501, "9112 7.1", field(b"Transfer-Encoding: chunked;x=y")),
    (501, "9112 6.1", field(b'Transfer-Encoding: "chunked"')),
    # What else a client may send: no body is ever taken for a request, no protocol is changed.
    (200, "9112 9.3", request() + OTHER_HEAD),
    (200, "9112 6.2", field(b"Content-Length: 28") + OTHER_HEAD),
    (200, "9110 10.1.1", field(b"Expect: 100-continue", b"Content-Length: 3") + b"abc"),
    (405, "9110 10.1.1", request(b"PUT / HTTP/1.1", b"Expect: 100-continue")),
    (200, "9110 10.1.1", field(b"Expect: nothing")),
    (200, "9110 7.8", field(b"Upgrade: h2c, websocket", b"Connection: Upgrade")),
    (200, "9110 14.2", field(b"Range: bytes=0-1,0-2")),
    (200, "9110 12.5.1", field(b"Accept: image/png")),
    (200, "9110 5.1", field(b"Transfer_Encoding: foo", b"Content_Length: x")),
    (404, "9110 15.5.5", request(b"GET /api/status%00 HTTP/1.1")),
    (404, "9110 15.5.5", request(b"GET /%c0%af HTTP/1.1")),
    (404, "9110 15.5.5", request(b"GET /%0d%0aX:y HTTP/1.1")),
    (404, "9110 15.5.5", request(b"GET /% HTTP/1.1")),
)


def page_as_sent():
    """index.html, line by line, without the comments that end at the ends of lines, and begin there
    or two spaces after the rest."""
    lines, inside = [], False
    for line in (HERE / "index.html").read_bytes().splitlines(keepends=True):
        text = line.strip()
        inside = inside or text.startswith(b"/*")
        if not inside and not text.startswith(b"//"):
            lines.append(re.sub(rb"  +(//.*|/\*.*\*/)$", b"", line))
        inside = inside and not text.endswith(b"*/")
    return b"".join(lines)


class Requests(Promises):
    def setUp(self):
        super().setUp()
        self.setting(LINGER_SECONDS=0.5, WATCH_SECONDS=0.05)
        self.server = self.serve()
        self.address = self.server.server_address

    def answer(self, request):
        """(status, headers in lower case, body) of raw bytes."""
        head, _, body = exchange(self.address, request).partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        self.assertRegex(status, r"^HTTP/1\.1 [1-5]\d\d ")
        self.assertNotIn(b"HTTP/1.1 ", body)
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        return int(status.split()[1]), headers, body

    def check_problem(self, expected, request):
        status, headers, body = self.answer(request)
        self.assertEqual(status, expected)
        self.assertEqual((headers["content-type"], headers["connection"]), (JSON_TYPE, "close"))
        self.assertEqual(list(json.loads(body)), ["error"])
        self.assertEqual(int(headers["content-length"]), len(body))
        return headers, json.loads(body)["error"]

    def test_every_kind_of_bytes_has_its_answer(self):
        """Each row of ANSWERS gets its status, at once, as JSON where it is an error; no more."""
        for expected, section, request in ANSWERS:
            with self.subTest(section=f"RFC {section}", request=request[:80]):
                if expected >= 400:
                    headers, _ = self.check_problem(expected, request)
                    self.assertEqual("allow" in headers, expected == 405)
                    continue
                status, _, body = self.answer(request)
                self.assertEqual(status, expected)
                if expected == 200 and b"x?y" not in request:
                    self.assertEqual(json.loads(body)["status"], "ok")
        self.assertEqual(fetch(self.address, "/api/status")[0], 200)

    def test_a_request_that_is_cut_short(self):
        """Who ends its half of the connection within the head is told so; who says nothing, not."""
        for sent, expected in (
            (b"", b""),
            (b"\r\n", b"HTTP/1.1 400 "),
            (b"GET / HT", b"HTTP/1.1 400 "),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", b"HTTP/1.1 400 "),
        ):
            with socket.create_connection(self.address, DEADLINE) as connection:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                with connection.makefile("rb") as file:
                    self.assertEqual(file.read()[:13], expected)

    def test_a_request_in_pieces(self):
        """A head may come byte by byte, and its line ends apart."""
        with socket.create_connection(self.address, DEADLINE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"\r\n" + field(b"X: y"):
                connection.sendall(bytes([byte]))
            with connection.makefile("rb") as file:
                self.assertEqual(file.readline(), b"HTTP/1.1 200 OK\r\n")

    def test_the_type_of_a_body_changes_nothing(self):
        """A form with files, as `curl -F` sends it, is answered like any other type."""
        for content_type in (
            b"multipart/form-data",
            b"multipart/form-data; boundary=x",
            b"message/rfc822",
            b"text/plain; charset=\xff",
            b"multipart/mixed; boundary=",
        ):
            fields = b"Content-Type: " + content_type, b"Content-Length: 5"
            for line, expected in (
                (b"POST / HTTP/1.1", 405),
                (b"POST /x HTTP/1.1", 404),
                (b"OPTIONS / HTTP/1.1", 204),
                (b"GET /api/status HTTP/1.1", 200),
            ):
                status, headers, _ = self.answer(request(line, *fields) + b"--x--")
                self.assertEqual((status, "allow" in headers), (expected, expected in (405, 204)))

    def test_no_head_keeps_the_server_busy(self):
        """The longest that is taken takes time in proportion to its length, whatever it holds."""
        page, long = b"GET / HTTP/1.1", 60_000
        for sent, expected in (
            (field(b"X:" + b" \t" * (long // 2) + b"\1"), 400),
            (field(b"X" * long), 400),
            (host(b"%41" * (long // 3) + b"%"), 400),
            (host(b"[" + b":" * long), 400),
            (request(b"GET http://" + b"a" * long + b"@ HTTP/1.1"), 400),
            (request(b"GET " + b"/" * long + b" HTTP/1.1"), 200),
            (request(b"GET /" + b"%" * long + b" HTTP/1.1"), 404),
            (request(b"GET /?" + b"a&" * (long // 2) + b" HTTP/1.1"), 200),
            (request(page, b"Accept-Encoding: " + b" ;q=0\t," * (long // 7)), 200),
            (request(page, b"If-None-Match: " + b'W/"",' * (long // 5)), 200),
            (field(b"Content-Length: " + b"5," * (long // 2) + b"5"), 200),
            (field(b"Transfer-Encoding: " + b"," * long + b"chunked"), 200),
        ):
            connections, end = [], time.monotonic() + DEADLINE
            for _ in range(5):  # together they are late where one takes seconds
                connections.append(socket.create_connection(self.address, DEADLINE))
                self.addCleanup(connections[-1].close)
                connections[-1].sendall(sent)
            for connection in connections:
                self.assertEqual(int(connection.recv(12)[9:]), expected, sent[:40])
            self.assertLess(time.monotonic(), end, sent[:40])

    def test_an_error_of_head_has_no_body(self):
        """HEAD is answered without a body, also when the request is wrong."""
        for line, fields, expected in (
            (b"HEAD /x HTTP/1.1", (), 404),
            (b"HEAD / HTTP/1.1", (b"junk",), 400),
            (b"HEAD / HTTP/1.1", (b"Host: y",), 400),
            (b"HEAD / HTTP/2.0", (), 505),
            (b"HEAD /api/events/all?history=x HTTP/1.1", (), 400),
        ):
            self.assertEqual(self.answer(request(line, *fields))[::2], (expected, b""))

    def test_the_page(self):
        """`/` is index.html without its comments, with a policy that allows its own script and
        style, and no others."""
        status, headers, body = fetch(self.address, "/")
        self.assertEqual((status, body), (200, page_as_sent()))
        policy = dict(
            part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";")
        )
        for tag in ("script", "style"):
            found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>".encode(), body, re.DOTALL)
            hashes = [base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found]
            self.assertEqual(policy.pop(f"{tag}-src").split(), [f"'sha256-{h}'" for h in hashes])
        self.assertEqual(policy.pop("connect-src"), "'self'")
        self.assertEqual(policy.pop("img-src"), "data:")
        others = ("default-src", "base-uri", "form-action", "frame-ancestors")
        self.assertEqual(policy, dict.fromkeys(others, "'none'"))
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Server", "sse-dashboard"),
            ("Vary", "Accept-Encoding"),
            ("Referrer-Policy", "no-referrer"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.assertEqual(headers[name], value)
        more = {"Date", "Content-Length", "ETag", "Cache-Control", "Connection"}
        named = {"Content-Type", "Server", "Vary", "Referrer-Policy", "X-Content-Type-Options"}
        self.assertEqual(set(headers), named | more | {"Content-Security-Policy"})

    def test_the_page_is_compressed_for_who_takes_it(self):
        """gzip by name or by `*`, not with a weight of 0; each form has its own ETag and length."""
        page = page_as_sent()
        self.assertLess(len(gzip.compress(page)), 32_768)  # what a browser has to load
        tags = {}
        for value, taken in (
            ("gzip", True),
            ("GZip", True),
            ("gzip, deflate, br, zstd", True),
            ("br;q=1.0, gzip;q=0.8, *;q=0.1", True),
            ("deflate,gzip ;q=0.001", True),
            ("*", True),
            ("gzip;q=1, *;q=0", True),
            ("", False),
            ("identity", False),
            ("identity;q=0", False),
            ("identity;q=0, gzip;q=0.5", True),
            ("br, xgzip", False),
            ("gzip;q=0", False),
            ("gzip; Q=0.000", False),
            ("gzip;q=0, *", False),
            ("*;q=0", False),
        ):
            for method in ("GET", "HEAD"):
                headers = {"Accept-Encoding": value}
                status, headers, body = fetch(self.address, "/", method, headers)
                self.assertEqual(status, 200)
                self.assertEqual(headers["Content-Encoding"], "gzip" if taken else None, value)
                self.assertEqual(headers["Vary"], "Accept-Encoding")
                tags.setdefault(taken, set()).add((headers["ETag"], headers["Content-Length"]))
                if method == "GET":
                    self.assertEqual(len(body), int(headers["Content-Length"]))
                    self.assertEqual(gzip.decompress(body) if taken else body, page)
        self.assertEqual([len(seen) for seen in tags.values()], [1, 1])
        self.assertEqual(len(tags[True] | tags[False]), 2)

    def test_the_page_is_sent_once(self):
        """With its ETag in If-None-Match: 304, which describes no content (RFC 9110, 15.4.5)."""
        for encoding in ("identity", "gzip"):
            asked = {"Accept-Encoding": encoding}
            _, full, _ = fetch(self.address, "/", headers=asked)
            tag = full["ETag"]
            for value, expected in (
                (tag, 304),
                (f'"x", W/{tag}', 304),
                ("*", 304),
                ('"x"', 200),
                ("", 200),
            ):
                conditional = asked | {"If-None-Match": value}
                status, headers, body = fetch(self.address, "/", headers=conditional)
                self.assertEqual((status, bool(body)), (expected, expected == 200))
                if status == 304:
                    about_content = {"Content-Type", "Content-Encoding", "Content-Length"}
                    self.assertEqual(set(headers), set(full) - about_content)
                    for name in set(headers) - {"Date"}:
                        self.assertEqual(headers[name], full[name])
            other = {"Accept-Encoding": "*" if encoding == "identity" else "", "If-None-Match": tag}
            self.assertEqual(fetch(self.address, "/", headers=other)[0], 200)

    def test_the_policy_fits_what_a_browser_parses(self):
        """Whatever a checkout's line ends are, the hashes are of the text with LF alone."""
        text = b"<style>\na {}\n</style>\n<script>\nlet b;\n\n</script>\n"
        policies = set()
        for ends in (b"\n", b"\r\n", b"\r"):
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(HERE / "sse_dashboard.py", folder)
                (Path(folder) / "index.html").write_bytes(text.replace(b"\n", ends))
                with Command(script=Path(folder) / "sse_dashboard.py") as command:
                    _, headers, body = fetch(command.address, "/")
            self.assertEqual(body, text)
            policies.add(headers["Content-Security-Policy"])
        self.assertEqual(len(policies), 1)
        for inside in (b"\na {}\n", b"\nlet b;\n\n"):
            digest = base64.b64encode(hashlib.sha256(inside).digest()).decode()
            self.assertIn(f"'sha256-{digest}'", min(policies))

    def test_the_headers_of_an_event_stream(self):
        """Nobody may store, change or buffer it, and it ends with its connection."""
        for path in STREAMS:
            head = self.stream(self.server, path).opened().head.decode()
            for line in (
                "HTTP/1.1 200 OK",
                "Content-Type: text/event-stream",
                "Cache-Control: no-store, no-transform",
                "X-Accel-Buffering: no",
                "X-Content-Type-Options: nosniff",
                "Connection: close",
                "Access-Control-Allow-Origin: *",
            ):
                self.assertIn(line, head.split("\r\n"))
            self.assertNotIn("Content-Length", head)
            self.assertNotIn("Transfer-Encoding", head)

    def test_what_each_stream_carries(self):
        """`metrics` carries metric, `alerts` carries alert, `all` both, the status and panels."""
        for name, kinds in (
            ("metrics", {"metric"}),
            ("alerts", {"alert"}),
            ("all", {"metric", "alert", "status", "panels"}),
        ):
            stream = self.stream(self.server, f"/api/events/{name}?history=60").opened()
            tick = str(self.server.tick())
            events = stream.until(
                lambda stream: any(last.startswith(tick) for _, _, last in stream.events)
            )
            self.assertEqual({kind for kind, _, _ in events}, kinds)
            self.assertTrue(all(data["type"] == kind for kind, data, _ in events))

    def test_head_answers_like_get_without_a_body(self):
        """HEAD of every route has the headers of its GET, and ends at once, also on a stream."""
        for path in ROUTES:
            head = exchange(self.address, f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self.assertTrue(head.endswith(b"\r\n\r\n") and head.count(b"\r\n\r\n") == 1, path)
            if path in STREAMS:
                get = self.stream(self.server, path).opened().head
            else:
                get = exchange(self.address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                get = get.partition(b"\r\n\r\n")[0]
                forgotten = f"{path} is in ROUTES, but not in answer() of the handler"
                self.assertNotIn(b"event-stream", get, forgotten)
            ignore = rb"(Date|Content-Length): [^\r]*"  # the status changes between the two
            head, get = (re.sub(ignore, b"", part.strip()) for part in (head, get))
            self.assertEqual(head, get, path)

    def test_options_tells_what_is_allowed(self):
        """OPTIONS: 204, Allow, and what a page of another origin may send."""
        for path in (*ROUTES, "*"):
            line = f"OPTIONS {path} HTTP/1.1".encode()
            status, headers, body = self.answer(request(line))
            self.assertEqual((status, body), (204, b""))
            for name, value in (
                ("allow", "GET, HEAD, OPTIONS"),
                ("access-control-allow-methods", "GET, HEAD, OPTIONS"),
                ("access-control-allow-headers", "Last-Event-ID, Cache-Control"),
                ("access-control-allow-origin", "*" if path.startswith("/api") else None),
                ("content-length", None),
            ):
                self.assertEqual(headers.get(name), value)

    def test_other_methods_and_other_paths(self):
        """Another method is 405 with Allow; another path 404, whatever the method."""
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "get"):
            for path in ROUTES:
                line = f"{method} {path} HTTP/1.1".encode()
                headers, _ = self.check_problem(405, request(line))
                self.assertEqual(headers["allow"], "GET, HEAD, OPTIONS")
        for method in ("GET", "POST", "OPTIONS", "FOO"):
            for path in (
                "/x",
                "/api",
                "/api/events",
                "/api/events/",
                "/index.html",
                "/../etc/passwd",
                "/%2e%2e/x",
                "http://x/y",
            ):
                self.check_problem(404, request(f"{method} {path} HTTP/1.1".encode()))

    def test_the_status(self):
        """The snapshot is JSON with true numbers, not to be stored."""
        first = self.stream(self.server).opened()
        status, headers, body = fetch(self.address, "/api/status")
        self.assertEqual((status, headers["Content-Type"]), (200, JSON_TYPE))
        self.assertEqual(headers["Cache-Control"], "no-store")
        self.assertEqual(headers["Access-Control-Allow-Origin"], "*")
        snapshot = json.loads(body)
        self.assertGreaterEqual(snapshot.pop("uptime_seconds"), 0)
        expected = {
            "status": "ok",
            "connections": 1,
            "events_published": 24,
            "last_event_id": f"{self.server.now}-8",
            "ended": dict.fromkeys(sse.REASONS, 0),
        }
        self.assertEqual(snapshot, expected)
        first.socket.close()
        self.assertTrue(
            eventually(
                lambda: json.loads(fetch(self.address, "/api/status")[2])["ended"]["closed"] == 1
            )
        )

    def test_filters(self):
        """Names and levels, repeated or with commas, narrow their own kind, and nothing else."""
        every = set(METRICS) | set(sse.LEVELS)
        levels = set(sse.LEVELS)
        for query, expected in (
            ("name=cpu_usage", {"cpu_usage"} | levels),
            ("name=cpu_usage&name=load_average", {"cpu_usage", "load_average"} | levels),
            ("name=cpu_usage,load_average&level=", {"cpu_usage", "load_average"} | levels),
            ("level=warning,error", {*METRICS, "warning", "error"}),
            ("level=info&name=disk_usage", {"disk_usage", "info"}),
            ("name=&foo=bar&foo", every),
        ):
            stream = self.stream(self.server, f"/api/events/all?{query}").opened()
            tick = self.server.tick(events_of(0, alerts=len(levels)))
            later = self.server.tick(
                events_of(0, alerts=len(levels))
            )  # behind it, all of the first has come
            events = stream.until(
                lambda stream: any(last.startswith(str(later)) for _, _, last in stream.events)
            )
            found = sorted(
                data.get("level") or data["name"]
                for kind, data, last in events
                if kind in ("metric", "alert") and last.startswith(str(tick))
            )
            self.assertEqual(found, sorted(expected), query)
        stream = self.stream(self.server, "/api/events/metrics?level=error&history=60")
        published = 7 * (self.server.now - TICK) // 1000
        events = stream.until(lambda stream: len(stream.events) >= published)
        self.assertEqual(len(events), published)

    def test_bad_parameters(self):
        """A name, level or history that cannot be is 400, and the answer names what can."""
        no_seconds = ("x", "-1", "nan", "inf", "1e3", "1_0", "+1", "%20")
        for path in STREAMS:
            for query, words in (
                ("name=cpu", METRICS),
                ("level=loud", sse.LEVELS),
                ("name=cpu_usage,x", METRICS),
                *((f"history={text}", ["seconds"]) for text in no_seconds),
                ("lastEventId=1%0A2", ["control"]),
                ("lastEventId=%00", ["control"]),
            ):
                line = f"GET {path}?{query} HTTP/1.1".encode()
                _, sentence = self.check_problem(400, request(line))
                for word in words:
                    self.assertIn(word, sentence)
        for path, expected in (("/x", 404), ("/api/status", 200)):  # unknown ones are ignored
            line = f"GET {path}?{'&'.join(['a=1'] * 500)} HTTP/1.1".encode()
            self.assertEqual(self.answer(request(line))[0], expected)

    def test_resume_by_header_and_by_parameter(self):
        """`Last-Event-ID` beats `lastEventId`, and both beat `history`."""
        early, late = f"{self.server.now - 2000}-8", f"{self.server.now}-6"
        for query, headers, count in (
            (f"?lastEventId={late}", (), 2),
            (f"?lastEventId={early}&history=0", (), 16),
            (f"?lastEventId={early}", [f"Last-Event-ID: {late}"], 2),
            (f"?lastEventId={early}", ["Last-Event-ID:"], 16),
            ("?history=60", [f"Last-Event-ID: {late} \t"], 2),
            ("?lastEventId=", (), 8),
        ):
            server = self.serve()
            stream = self.stream(server, f"/api/events/all{query}", headers).opened()
            live = ids(stream.until_id(server.tick()))
            self.assertEqual(len(live), count + 8, query)

    def test_a_reset_is_an_answer_like_any_other(self):
        """An ID that is no ID: 200, first `reset`, then all that is held."""
        stream = self.stream(self.server, "/api/events/metrics?lastEventId=nonsense")
        events = stream.until(lambda stream: len(stream.events) >= 22)
        self.assertIn(b" 200 ", stream.head)
        kind, data, last_id = events[0]
        self.assertEqual((kind, data["reason"], last_id), ("reset", "unknown", ""))
        self.assertEqual(len(ids(events)), 21)

    def test_slashes_and_escapes(self):
        """A path with a slash too many, as a proxy may make it, or with escapes is the same."""
        for target in (b"//api/status", b"/api/%73tatus?x", b"/%61pi%2Fstatus"):
            self.assertEqual(self.answer(request(b"GET " + target + b" HTTP/1.1"))[0], 200)

    def test_a_large_body_is_not_read(self):
        """The answer to it arrives whole, although its body was never read."""
        large = request(b"POST / HTTP/1.1", b"Content-Length: 200000") + b"x" * 200_000
        self.check_problem(405, large)

    def test_an_answer_is_not_lost_to_a_body_on_its_way(self):
        """Who still sends is not reset before it has read: the close has two steps (9112 9.6)."""
        self.setting(LINGER_SECONDS=float(DEADLINE))
        post = request(b"POST / HTTP/1.1", b"Content-Length: 900000")
        with (
            socket.create_connection(self.address, DEADLINE) as connection,
            selectors.DefaultSelector() as answered,
        ):
            answered.register(connection, selectors.EVENT_READ)
            connection.sendall(post + b"x" * 50_000)
            self.assertTrue(answered.select(DEADLINE))
            for _ in range(20):
                connection.sendall(b"x" * 10_000)
            with connection.makefile("rb") as file:
                self.assertIn(b" 405 ", file.read())
            connection.sendall(b"x" * 200_000)
            self.assertEqual(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)

    def test_nothing_a_client_sends_is_echoed(self):
        """Neither a header nor a log line holds what could break it."""
        evil = b"/%0d%0aSet-Cookie:a=b?name=%0d%0aX:y"
        stream = b"GET /api/events/all?lastEventId="
        sse.logger.setLevel(logging.DEBUG)
        self.addCleanup(sse.logger.setLevel, logging.NOTSET)
        for sent in (
            request(b"GET " + evil + b" HTTP/1.1"),
            request(b"GET " + evil + b"\x1b[31m HTTP/1.1"),
            request(b"GET /\x85\xa0\xad\r[31m HTTP/1.1"),
            request(b"GET %s%d(x)s{0} HTTP/1.1"),
            host(b"\x1b[31mx"),
            b"GET\x1b[31m" + evil + b"\r\n\r\n",
            request(stream + evil + b" HTTP/1.1"),
        ):
            answer = exchange(self.address, sent)
            for part in (b"Set-Cookie", b"\x1b", b"X:y"):
                self.assertNotIn(part, answer)
        self.assertTrue(self.log)
        for record in self.log:
            self.assertTrue(record.getMessage().isprintable(), record.getMessage())

    def test_300_mutations_of_valid_requests(self):
        """Whatever comes is answered or closed, without a traceback, and the server serves on."""
        self.needs_descriptors(1500)
        self.setting(REQUEST_SECONDS=0.3, LINGER_SECONDS=0.1)
        chance = random.Random(7)
        valid = [
            request(b"GET / HTTP/1.1", b'If-None-Match: "x"', b"Accept-Encoding: gzip;q=0.5, *"),
            b"HEAD /api/status HTTP/1.0\r\n\r\n",
            request(
                b"GET /api/events/all?history=5&name=cpu_usage&lastEventId=1-1 HTTP/1.1",
                b"Last-Event-ID: 5-5",
            ),
            request(b"OPTIONS /api/events/alerts?level=info HTTP/1.1", b"Content-Length: 3"),
            field(b"Transfer-Encoding: gzip, chunked", b"X: y") + b"0\r\n\r\n",
        ]
        pieces = [
            *(bytes([code]) for code in b"\0\xff :%?&=\t-\n\r,[]@\x85"),
            b"\r\n",
            b"HTTP/9.9",
            b"//",
            b"A" * 5000,
        ]
        watcher = self.stream(self.server).opened()
        with selectors.DefaultSelector() as waiting:
            for _ in range(300):
                sent = bytearray(chance.choice(valid))
                for _ in range(chance.randint(1, 5)):
                    at = chance.randrange(len(sent) + 1)
                    sent[at : at + chance.choice([0, 0, 1, 3])] = chance.choice(pieces)
                connection = socket.create_connection(self.address, DEADLINE)
                self.addCleanup(connection.close)
                connection.sendall(sent)
                waiting.register(connection, selectors.EVENT_READ)
            end = time.monotonic() + DEADLINE
            while waiting.get_map():
                self.assertLess(
                    time.monotonic(), end, "a connection got neither an answer nor its end"
                )
                for key, _ in waiting.select(1):
                    with contextlib.suppress(ConnectionError):
                        answer = key.fileobj.recv(65536)
                        self.assertRegex(answer, rb"\A(HTTP/1\.1 \d\d\d |\Z)")
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()
        self.assertEqual(fetch(self.address, "/api/status")[0], 200)
        watcher.until_id(self.server.tick())


# --- Server --------------------------------------------------------------------------------------


class WindowsSelector(selectors.SelectSelector):
    """It refuses to look at no socket, as select() does on Windows."""

    times_empty = 0  # that somebody asked

    def get_map(self):
        found = super().get_map()
        WindowsSelector.times_empty += not found
        return found

    def select(self, timeout=None):
        if not self.get_map():
            raise OSError(errno.EINVAL, "An invalid argument was supplied")
        return super().select(timeout)


def threads_of(pid="self"):
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors_of(pid="self"):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib():
    """The memory of this process that is in use."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def cpu_seconds_of(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def drop_everything(connection):
    """Lets the kernel throw away every packet that comes to this socket.

    To its peer, this machine has vanished."""
    instruction = struct.pack("HBBI", 0x06, 0, 0, 0)  # the only one: keep 0 bytes
    instructions = ctypes.create_string_buffer(instruction)
    program = struct.pack("HL", 1, ctypes.addressof(instructions))  # struct sock_fprog
    try:
        connection.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER
    except PermissionError as problem:
        raise unittest.SkipTest("this kernel lets only root filter a socket") from problem


ON_LINUX = unittest.skipUnless(sys.platform == "linux", "reads /proc: run it on Linux")


class Connections(Promises):
    watch_seconds = sse.WATCH_SECONDS

    def setUp(self):
        super().setUp()
        self.setting(LINGER_SECONDS=0.3, WATCH_SECONDS=0.05)

    @ON_LINUX
    def test_a_client_that_closes_is_gone_soon(self):
        """By FIN, by RST, by both or after it has sent bytes, on each stream, silent ones too:
        thread, queue and socket are gone with the next look but one at all connections."""
        self.assertLessEqual(type(self).watch_seconds, 0.5)  # so that it is a second at most
        server = self.serve()
        self.assertTrue(eventually(lambda: not server.deadlines))
        before = threads_of(), descriptors_of()
        for leave in (
            lambda stream: stream.socket.close(),
            Stream.reset,
            Stream.leave_and_reset,
            Stream.talk_and_leave,
        ):
            streams = [Stream(server.server_address, path).opened() for path in STREAMS]
            self.assertEqual(server.status()["connections"], len(STREAMS))
            for stream in streams:
                leave(stream)
            self.assertTrue(eventually(lambda: server.status()["connections"] == 0))
            self.assertTrue(eventually(lambda: threads_of() <= before[0]))
            self.assertTrue(eventually(lambda: descriptors_of() <= before[1]))
        ended = dict.fromkeys(sse.REASONS, 0) | {"closed": 4 * len(STREAMS)}
        self.assertEqual(server.status()["ended"], ended)
        self.assertEqual(server.deadlines, {})

    def test_a_close_behind_much_unasked_input_is_noticed_too(self):
        """What a client has sent before it closes does not hide its end."""
        server = self.serve()
        stream = self.stream(server, "/api/events/alerts").opened()
        stream.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stream.socket.send(b"x" * 1_000_000)
        stream.socket.shutdown(socket.SHUT_WR)
        self.assertTrue(eventually(lambda: server.closed, 3))

    def test_a_source_that_blocks_stops_nothing(self):
        """While a source does not come back, silent streams get heartbeats, and a client that
        closes is noticed."""
        self.setting(HEARTBEAT_SECONDS=0.2)
        gate = threading.Event()
        self.addCleanup(gate.set)
        blocking = Counting(
            act=lambda tick: [alert("info", "at last")] if gate.wait(DEADLINE) else []
        )
        with sse.DashboardServer("127.0.0.1", 0, sources=[blocking], interval=0.05) as server:
            blocking.wait_for(1)
            with Stream(server.server_address, "/api/events/alerts") as stream:
                stream.until(lambda stream: stream.parser.comments >= 2)
                self.assertEqual(len(blocking.ticks), 1)
            self.assertTrue(eventually(lambda: server.status()["ended"]["closed"] == 1))
            gate.set()

    def test_bytes_sent_into_an_open_stream_are_thrown_away(self):
        """They end nothing, and a client that sends without end takes no more than its share of
        the watcher."""
        server = self.serve()
        noisy, other = self.stream(server).opened(), self.stream(server).opened()
        noisy.socket.setblocking(False)
        before = time.process_time()
        for _ in range(5):
            with contextlib.suppress(BlockingIOError):
                while noisy.socket.send(b"GET / HTTP/1.1\r\n\r\n" * 1000):
                    pass
            server.tick()
        noisy.socket.settimeout(DEADLINE)
        noisy.until_id(server.now)
        other.until_id(server.now)
        self.assertEqual(noisy.raw.count(b"HTTP/1.1"), 0)
        self.assertLess(time.process_time() - before, 2)
        self.assertEqual(server.broadcaster.snapshot()["connections"], 2)

    def test_a_client_that_reads_slowly_misses_nothing(self):
        """It stays connected, and gets each event once, from the history that all share."""
        self.setting(SEND_BUFFER_BYTES=4096, QUEUE_FRAMES=5)
        server = self.serve(0)
        server.tick()
        slow, quick = (
            self.stream(server, receive_buffer=2048).opened(),
            self.stream(server).opened(),
        )
        for _ in range(200):
            server.tick()
            quick.until_id(server.now)
        self.assertEqual((server.closed, server.status()["connections"]), ([], 2))
        self.assertEqual(ids(slow.until_id(server.now)), ids(quick.events))

    def test_a_client_that_reads_more_slowly_than_history_goes_is_told(self):
        """It gets a `reset` in the open stream, and then what is held."""
        self.setting(SEND_BUFFER_BYTES=4096, QUEUE_FRAMES=5)
        server = self.serve(1, history=5)
        slow = self.stream(server, receive_buffer=2048).opened()
        slow.until_id(server.tick())  # who has read nothing yet can miss nothing
        for _ in range(300):
            server.tick()
        events = slow.until_id(server.now)
        resets = [data["reason"] for kind, data, _ in events if kind == "reset"]
        self.assertEqual(set(resets), {"expired"})
        seen = [tuple(map(int, last.split("-"))) for last in ids(events)]
        self.assertEqual(seen, sorted(set(seen)))
        self.assertEqual(len({tick for tick, _ in seen if tick > server.now - 5000}), 5)
        slow.until_id(server.tick())
        self.assertEqual(server.closed, [])

    def test_3000_alerts_in_one_loop_reach_50_clients(self):
        """Nobody is disconnected, and each has each alert once, in order."""
        self.needs_threads(110)
        server = self.serve()
        streams = [self.stream(server, "/api/events/alerts").opened() for _ in range(50)]
        got = []

        def read(stream):
            wire = b""
            while b'"n2999"' not in wire[-1000:]:
                wire += stream.socket.recv(65536) or b'"n2999"'
            got.append(numbers(wire))

        readers = [threading.Thread(target=read, args=[stream], daemon=True) for stream in streams]
        for reader in readers:
            reader.start()
        for event in numbered(0, 3000):
            server.publish(event)
        for reader in readers:
            reader.join(DEADLINE)
        self.assertEqual(got, [list(range(3000))] * 50)
        self.assertEqual(server.closed, [])

    def test_joining_with_history_while_much_is_published(self):
        """400 events a second: who joins with `?history=300` reads on behind them, and misses
        none."""
        server, done, last = self.serve(), threading.Event(), []

        def publish():
            for number in itertools.count():
                server.publish(*numbered(number, number + 1))
                if done.wait(0.0025):
                    last.append(number)
                    return

        publisher = threading.Thread(target=publish)
        publisher.start()
        try:
            streams = [self.stream(server, "/api/events/alerts?history=300") for _ in range(5)]
            wires = [b""] * 5
            for turn in range(100):
                wires[turn % 5] += streams[turn % 5].socket.recv(65536)
        finally:
            done.set()
            publisher.join()
        for stream, begun in zip(streams, wires):
            wire = begun
            while f'"n{last[0]}"'.encode() not in wire[-1000:]:
                chunk = stream.socket.recv(65536)
                self.assertTrue(chunk)
                wire += chunk
            self.assertEqual(numbers(wire), list(range(last[0] + 1)))

    @ON_LINUX
    def test_a_client_that_takes_nothing_is_stalled(self):
        """After SEND_TIMEOUT_SECONDS, whether its queue fills or not. What it has not taken is
        thrown away, and others go on."""
        self.setting(SEND_TIMEOUT_SECONDS=0.3, SLOWEST_BYTES=10_000_000)
        server = self.serve()
        other = self.stream(server, "/api/events/metrics").opened()
        frozen = self.stream(server, "/api/events/alerts", receive_buffer=2048).opened()
        server.tick([alert("info", "x" * 500_000)])
        self.assertTrue(eventually(lambda: server.closed == ["stalled"]), server.closed)
        self.assertEqual(server.status()["ended"]["stalled"], 1)
        with self.assertRaises(ConnectionResetError):
            while frozen.read():
                pass
        server.tick()
        other.until(lambda stream: len(ids(stream.events)) == 14)

    @ON_LINUX
    def test_a_slow_reader_is_not_taken_for_one_that_takes_nothing(self):
        """At SLOWEST_BYTES a second nobody is stalled, though a kernel that holds much for its
        client takes nothing for longer than SEND_TIMEOUT_SECONDS."""
        rate = 100_000
        self.setting(SEND_TIMEOUT_SECONDS=0.5, SLOWEST_BYTES=rate, QUEUE_FRAMES=5)
        server = self.serve(0)
        for _ in range(200):
            server.tick([alert("info", "x" * 1500)])
        slow = {}
        for size in (0, 2048, 8192):
            stream = self.stream(server, "/api/events/alerts?history=300", receive_buffer=size)
            slow[stream.opened()] = 0
        start, pause = time.monotonic(), threading.Event()
        while (spent := time.monotonic() - start) < 1.5:
            for stream, taken in slow.items():
                if (due := int(rate * spent) - taken) > 0:
                    slow[stream] += len(stream.socket.recv(due))
            pause.wait(0.02)
        self.assertEqual((server.closed, server.status()["connections"]), ([], 3))

    @ON_LINUX
    def test_time_in_which_the_process_was_stopped_counts_for_no_client(self):
        """After a pause of minutes nobody is stalled for what could not be taken meanwhile."""
        clock = FakeTime()
        self.setting(SEND_TIMEOUT_SECONDS=60.0)
        server = self.serve()
        self.stream(server, receive_buffer=2048).opened()
        silent = [self.stream(server, "/api/events/alerts?level=error").opened() for _ in range(2)]
        server.tick([alert("info", "x" * 500_000)])
        with mock.patch.object(sse, "time", clock):
            for number, pause in enumerate((0, 1000)):
                clock.steady = pause
                silent[number].socket.close()  # noticed by the look at all connections alone
                self.assertTrue(eventually(lambda: len(server.closed) > number))
        self.assertEqual(server.closed, ["closed"] * 2)

    @unittest.skipUnless(
        hasattr(socket, "TCP_USER_TIMEOUT"), "TCP_USER_TIMEOUT is missing: run it on Linux"
    )
    def test_a_peer_that_the_kernel_gives_up_is_stalled_too(self):
        """Whether the thread that writes is told of it, or the one that looks at all."""
        self.setting(
            SOCKET_OPTIONS=(*sse.SOCKET_OPTIONS, ("IPPROTO_TCP", "TCP_USER_TIMEOUT", 300)),
            HEARTBEAT_SECONDS=0.1,
        )
        server = self.serve()
        for level in ("info", "error"):
            for _ in range(10):
                path = f"/api/events/alerts?level={level}"
                self.stream(server, path, receive_buffer=2048).opened()
        # Some threads write heartbeats, then, and some wait in a write.
        server.tick([alert("info", "x" * 15_000), alert("error", "x" * 200_000)])
        self.assertTrue(eventually(lambda: not server.status()["connections"]))
        self.assertEqual(server.closed, ["stalled"] * 20)

    def test_each_accepted_socket_has_the_options(self):
        """They are set on the listening socket, and the system hands them on."""
        server = self.serve()
        self.stream(server).opened()
        (connection,) = server.deadlines
        self.assertTrue(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        self.assertLessEqual(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), 4 * sse.SEND_BUFFER_BYTES
        )

    @ON_LINUX
    def test_a_peer_that_vanishes_without_a_word_is_gone(self):
        """Its side drops every packet: a heartbeat finds out, on a silent stream, and nobody else
        notices. The time that a slow reader may take is not for who does not answer."""
        self.setting(SEND_TIMEOUT_SECONDS=0.3, SLOWEST_BYTES=1, HEARTBEAT_SECONDS=0.2, IN_VAIN=1)
        server = self.serve()
        other = self.stream(server).opened()
        vanished = self.stream(server, "/api/events/alerts?level=error").opened()
        drop_everything(vanished.socket)
        self.assertTrue(eventually(lambda: server.closed), "never noticed")
        self.assertEqual((server.closed, server.status()["connections"]), (["stalled"], 1))
        other.until_id(server.tick())

    def test_200_that_never_read_hold_up_nobody(self):
        """200 others get every tick, and what the silent ones miss takes no memory for each."""
        self.needs_threads(450)
        self.needs_descriptors(1500)
        self.setting(SEND_BUFFER_BYTES=4096)
        server = self.serve(max_clients=500, history=2)
        for _ in range(200):
            self.stream(server, receive_buffer=2048)
        good = [self.stream(server).opened() for _ in range(200)]
        self.assertTrue(eventually(lambda: server.status()["connections"] == 400))
        before = resident_kib()
        for number in range(30):
            tick = server.tick([metric("padding", number, "x" * 50_000)])
            for stream in good:
                got = b""
                while f"id: {tick}-1\n\n".encode() not in got or not got.endswith(b"\n\n"):
                    chunk = stream.socket.recv(65536)
                    self.assertTrue(chunk)
                    got += chunk
        self.assertEqual((server.closed, server.status()["connections"]), ([], 400))
        self.assertLess(resident_kib() - before, 60_000)  # each on its own: 300,000

    def test_a_request_that_is_not_complete_is_closed(self):
        """Nothing, half a request line, half a header, a byte at a time: closed after
        REQUEST_SECONDS."""
        self.setting(REQUEST_SECONDS=0.4)
        server = self.serve()
        start = time.monotonic()
        connections = []
        for begin in (b"", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nA: b"):
            connections.append(socket.create_connection(server.server_address, DEADLINE))
            self.addCleanup(connections[-1].close)
            connections[-1].sendall(begin)
        dripping = connections[2]
        drips = 0
        with contextlib.suppress(OSError):
            while time.monotonic() - start < DEADLINE:
                dripping.sendall(b"a")
                drips += 1
                dripping.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    if not dripping.recv(100):
                        break
        self.assertGreater(drips, 3)
        for connection in connections:
            connection.settimeout(DEADLINE)
            with contextlib.suppress(ConnectionError):
                self.assertEqual(connection.recv(100), b"")
        self.assertTrue(0.3 < time.monotonic() - start < DEADLINE)
        self.assertTrue(eventually(lambda: not server.deadlines))
        self.assertEqual(server.status()["ended"]["closed"], 0)

    def test_a_response_that_is_not_taken_is_closed(self):
        """Who asks for the page and does not read it holds a place for RESPONSE_SECONDS."""
        self.setting(RESPONSE_SECONDS=1.0, SEND_BUFFER_BYTES=2048)
        server = self.serve(max_clients=2)
        stream = self.stream(server).opened()  # whose response has no such limit
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.settimeout(DEADLINE)
            connection.connect(server.server_address)
            connection.sendall(request(b"GET / HTTP/1.1"))
            connection.recv(1)  # the server writes now
            self.assertEqual(fetch(server.server_address, "/x")[0], 503)
            self.assertTrue(eventually(lambda: fetch(server.server_address, "/x")[0] == 404))
        stream.until_id(server.tick())

    def test_a_full_house(self):
        """Over --max-clients, silent connections counted: 503 at once with Retry-After, nobody
        evicted, a freed place goes on."""
        server = self.serve(max_clients=3)
        streams = [self.stream(server).opened() for _ in range(2)]
        silent = socket.create_connection(server.server_address, DEADLINE)
        self.addCleanup(silent.close)
        self.assertTrue(eventually(lambda: len(server.deadlines) == 3))
        for _ in range(20):
            head, _, body = exchange(
                server.server_address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            ).partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 503 "))
            self.assertRegex(head, rb"\r\nRetry-After: \d+\r\n")
            self.assertEqual(list(json.loads(body)), ["error"])
            self.assertIn(f"\r\nContent-Length: {len(body)}\r\n".encode(), head + b"\r\n")
        with socket.create_connection(server.server_address, DEADLINE) as says_nothing:
            self.assertTrue(says_nothing.recv(100).startswith(b"HTTP/1.1 503 "))
        for stream in streams:
            stream.until_id(server.tick())
        self.assertEqual(server.status()["ended"]["refused"], 21)
        stop = threading.Event()

        def flood():
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    socket.create_connection(server.server_address, DEADLINE).close()

        flooder = threading.Thread(target=flood)
        flooder.start()
        try:
            streams[0].socket.close()
            self.assertTrue(
                eventually(
                    lambda: (
                        b" 200 "
                        in exchange(
                            server.server_address, b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"
                        )[:20]
                    )
                )
            )
        finally:
            stop.set()
            flooder.join()
        streams[1].until_id(server.tick())

    def test_a_place_is_free_when_the_answer_is_sent(self):
        """Who does not close then keeps no place from others, and is cut after LINGER_SECONDS."""
        server = self.serve(max_clients=1)
        request = b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n"
        self.setting(LINGER_SECONDS=0.2)
        before = descriptors_of()
        with socket.create_connection(server.server_address, DEADLINE) as lingers:
            lingers.sendall(request)
            self.assertIn(b" 200 ", b"".join(iter(lambda: lingers.recv(65536), b"")))
            self.assertTrue(
                eventually(lambda: b" 200 " in exchange(server.server_address, request))
            )
            self.assertTrue(eventually(lambda: descriptors_of() <= before + 1))

    def test_those_who_are_refused_are_bounded(self):
        """A flood of refused clients that do not close uses up neither threads nor descriptors;
        each is told."""
        self.setting(MAX_LINGERING=5, LINGER_SECONDS=60.0)
        server = self.serve(max_clients=1)
        self.stream(server).opened()
        before = threads_of(), descriptors_of()
        for _ in range(30):
            connection = socket.create_connection(server.server_address, DEADLINE)
            self.addCleanup(connection.close)
            self.assertIn(b" 503 ", connection.recv(1000))
        self.assertTrue(eventually(lambda: descriptors_of() <= before[1] + 30 + 5))
        self.assertEqual(threads_of(), before[0])
        self.assertEqual(server.status()["ended"]["refused"], 30)

    def test_450_too_many_are_each_told(self):
        """500 clients at once where 50 have a place: the others get a whole 503 each."""
        self.needs_descriptors(1500)
        server = self.serve(max_clients=50)
        connections = []
        for _ in range(500):
            connections.append(socket.create_connection(server.server_address, DEADLINE))
            self.addCleanup(connections[-1].close)
        refused = 0
        for connection in connections:
            connection.sendall(b"GET /api/events/alerts HTTP/1.1\r\nHost: x\r\n\r\n")
        for connection in connections:
            answer = connection.recv(12)
            refused += answer == b"HTTP/1.1 503"
            self.assertIn(answer, (b"HTTP/1.1 503", b"HTTP/1.1 200"))
        self.assertEqual(refused, 450)

    def test_without_a_thread_a_connection_gets_the_503(self):
        """The system has no more threads, or memory for one: each time it is one line in the log,
        and the others are served on."""
        server = self.serve()
        stream = self.stream(server).opened()
        for problem in (RuntimeError("can't start new thread"), MemoryError()):
            with mock.patch.object(sse.threading.Thread, "start", side_effect=problem):
                answer = exchange(server.server_address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 503 "), answer)
            (record,) = self.expect_logged("no thread")
            self.assertIsNone(record.exc_info)
        stream.until_id(server.tick())
        self.assertEqual(fetch(server.server_address, "/")[0], 200)
        self.assertEqual(server.status()["ended"]["refused"], 2)

    def test_a_beginning_that_fails_leaves_nothing(self):
        """Neither without a thread nor at a signal that comes when all have just begun."""
        start = threading.Thread.start

        def fail(thread):
            if thread.name == "serve":
                raise RuntimeError("can't start new thread")
            start(thread)

        def begin_and_be_interrupted(thread):
            start(thread)
            if thread.name == "serve":
                raise KeyboardInterrupt

        for begin, problem in ((fail, RuntimeError), (begin_and_be_interrupted, KeyboardInterrupt)):
            server = sse.DashboardServer(port=0)
            with mock.patch.object(threading.Thread, "start", begin):
                self.assertRaises(problem, server.__enter__)
            self.assertEqual({"serve", "generator"} & set(thread_names()), set())
            with self.assertRaises(ConnectionError):
                socket.create_connection(server.server_address)

    def test_the_limit_of_descriptors_is_raised_to_what_is_needed(self):
        """A soft limit below --max-clients keeps nobody out."""
        self.needs_threads(160)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lower = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, hard))
        with (
            Command("--max-clients", 200, preexec_fn=lower) as command,
            contextlib.ExitStack() as stack,
        ):
            streams = [stack.enter_context(Stream(command.address)) for _ in range(150)]
            for stream in streams:
                stream.opened()
            self.assertEqual(command.end()[:2], (0, ""))

    @ON_LINUX
    def test_without_descriptors_it_waits_and_recovers(self):
        """No busy loop, one line in the log each time, and service again when descriptors are
        free. Who has had an answer and stays takes none from the next."""
        program = (
            "import resource, sys; sys.argv[0] = 'sse_dashboard.py'; import sse_dashboard as s;"
            "s.LINGER_SECONDS, s.WATCH_SECONDS = 60.0, 0.05;"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40));"
            "sys.exit(s.main())"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", program, "--port", "0"],
            cwd=HERE,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.addCleanup(child.communicate)
        self.addCleanup(child.kill)
        address = ("127.0.0.1", int(re.search(r":(\d+)/", child.stdout.readline())[1]))
        log, idle = [], descriptors_of(child.pid)
        reader = threading.Thread(target=lambda: log.extend(child.stderr))
        reader.start()
        answered = [Stream(address, "/api/status") for _ in range(60)]
        for stream in answered:
            stream.to_the_end()
        for stream in answered:
            stream.socket.close()
        self.assertTrue(eventually(lambda: descriptors_of(child.pid) == idle))
        for looked_at in (0.6, 0):  # seconds
            said = len(log)
            held = [socket.create_connection(address, DEADLINE) for _ in range(60)]
            self.assertTrue(eventually(lambda: descriptors_of(child.pid) == 40 and len(log) > said))
            said, spent = len(log), cpu_seconds_of(child.pid)
            self.assertFalse(
                eventually(
                    lambda: cpu_seconds_of(child.pid) - spent > 0.2 or len(log) > said, looked_at
                )
            )
            for connection in held:
                connection.close()
            self.assertTrue(
                eventually(
                    lambda: exchange(address, b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\n")
                )
            )
            self.assertTrue(eventually(lambda: descriptors_of(child.pid) == idle))
        child.send_signal(signal.SIGTERM)
        self.assertEqual(child.wait(DEADLINE), 0)
        reader.join(DEADLINE)
        self.assertEqual([line for line in log if "cannot accept connections" not in line], [])

    def test_1000_streams_in_one_burst(self):
        """All connect at once, none fails, and each gets the next tick."""
        self.needs_threads(1100)
        self.needs_descriptors(3000)
        server = self.serve(max_clients=1100)
        request = b"GET /api/events/all HTTP/1.1\r\nHost: x\r\n\r\n"
        streams = []
        with selectors.DefaultSelector() as connecting:
            for _ in range(1000):
                connection = socket.socket()
                self.addCleanup(connection.close)
                connection.setblocking(False)
                connection.connect_ex(server.server_address)
                connecting.register(connection, selectors.EVENT_WRITE)
            while connecting.get_map():
                ready = connecting.select(DEADLINE)
                self.assertTrue(ready, "nothing connects any more")
                for key, _ in ready:
                    connecting.unregister(key.fileobj)
                    self.assertEqual(key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 0)
                    key.fileobj.settimeout(DEADLINE)
                    key.fileobj.sendall(request)
                    streams.append(key.fileobj)
        self.assertTrue(
            eventually(lambda: server.broadcaster.snapshot()["connections"] == 1000),
            server.broadcaster.snapshot()["connections"],
        )
        end = f"id: {server.tick()}-8\n\n".encode()
        for connection in streams:
            got = b""
            while end not in got:
                chunk = connection.recv(65536)
                self.assertTrue(chunk)
                got += chunk

    def test_a_handler_that_fails_is_logged_and_ends_alone(self):
        """A hook that raises: its stream ends as failed, with the traceback in the log, and others
        go on."""

        class Raising(HandDriven):
            def stream_opened(self, address, path):
                if path.endswith("alerts"):
                    raise FileNotFoundError("hook")

            def stream_closed(self, address, path, *rest):
                super().stream_closed(address, path, *rest)
                if path.endswith("metrics"):
                    raise BrokenPipeError("the same error as of a client that left")

        server = self.serve(kind=Raising)
        good = self.stream(server).opened()
        self.stream(server, "/api/events/alerts").to_the_end()
        good.until_id(server.tick())
        self.assertTrue(eventually(lambda: server.status()["ended"]["failed"] == 1))
        self.assertTrue(eventually(lambda: server.closed == ["failed"]))
        self.assertTrue(eventually(lambda: self.log))
        self.stream(server, "/api/events/metrics").opened().socket.close()
        self.assertTrue(eventually(lambda: len(self.log) == 2))
        logged = self.expect_logged("failed")
        self.assertEqual(
            [type(record.exc_info[1].__cause__) for record in logged],
            [FileNotFoundError, BrokenPipeError],
        )

    def test_a_stream_says_at_verbose_how_it_ended(self):
        """With --verbose each stream's end is one line: address, route, duration, events,
        reason."""
        sse.logger.setLevel(logging.DEBUG)
        self.addCleanup(sse.logger.setLevel, logging.NOTSET)
        server = self.serve()
        stream = self.stream(server)
        stream.until(lambda stream: len(stream.events) == 10)
        stream.socket.close()
        self.assertTrue(eventually(lambda: server.closed))
        lines = [record.getMessage() for record in self.log if "ended" in record.getMessage()]
        self.assertEqual(len(lines), 1)
        self.assertRegex(
            lines[0], r"^127\.0\.0\.1 /api/events/all ended after \d+\.\d s and 10 events: closed$"
        )

    def test_the_end_is_in_order(self):
        """Leaving the block ends every stream behind its last whole event, as shutdown, and frees
        the port."""
        self.setting(HEARTBEAT_SECONDS=0.1)
        server = HandDriven()
        with server:
            server.tick()
            streams = [self.stream(server, path).caught_up() for path in STREAMS]
            server.tick()
            silent = socket.create_connection(server.server_address)
            self.addCleanup(silent.close)
            self.assertTrue(eventually(lambda: len(server.deadlines) == len(STREAMS) + 1))
        for stream in streams:
            self.assertTrue(stream.ended_on_a_whole_event())
        silent.settimeout(DEADLINE)
        self.assertEqual(silent.recv(1), b"")
        self.assertEqual(server.closed, ["shutdown"] * len(STREAMS))
        self.assertEqual(
            ids(streams[STREAMS.index("/api/events/all")].events)[-1], f"{server.now}-8"
        )
        with self.assertRaises(ConnectionError):
            socket.create_connection(server.server_address)
        with self.assertRaisesRegex(RuntimeError, "ended"):
            server.publish(alert("info", "too late"))

    def fork(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that threads run is the point
            return os.fork()

    @unittest.skipUnless(hasattr(os, "fork"), "this system does not fork")
    def test_a_forked_process_that_lives_on_holds_no_port(self):
        """Leaving the block gives the port back at once, and nobody connects to the copy."""
        with HandDriven() as server:
            reader, writer = os.pipe()
            child = self.fork()
            if not child:
                os.close(writer)
                os.read(reader, 1)
                os._exit(0)
            os.close(reader)
        try:
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(server.server_address, DEADLINE)
            socket.create_server(server.server_address).close()
        finally:
            os.close(writer)
            os.waitpid(child, 0)

    @unittest.skipUnless(hasattr(os, "fork"), "this system does not fork")
    def test_a_forked_process_that_leaves_the_block_ends_nothing(self):
        """The server is its parent's."""
        with HandDriven() as server:
            server.tick()
            stream = self.stream(server).opened()
            child = self.fork()
            if not child:
                try:
                    server.__exit__(None, None, None)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            stream.until_id(server.tick())
            self.assertEqual(fetch(server.server_address, "/api/status")[0], 200)

    def test_a_look_that_fails_ends_nothing(self):
        """The selector may have a limit: it is logged once, and everybody is served on."""
        server = self.serve()
        stream = self.stream(server).opened()
        looked = threading.Semaphore(0)

        def select(*_):
            looked.release()
            raise ValueError("too many file descriptors in select()")

        with mock.patch.object(selectors.DefaultSelector, "select", select):
            for _ in range(3):
                self.assertTrue(looked.acquire(timeout=DEADLINE))
            self.assertEqual(fetch(server.server_address, "/")[0], 200)
        self.assertEqual(len(self.expect_logged("cannot look after")), 1)
        stream.socket.close()
        self.assertTrue(eventually(lambda: server.closed == ["closed"]))

    def test_a_thread_that_comes_late_to_the_end_leaves_without_a_word(self):
        """One that is about to open a stream when the server has just ended finds nothing to
        stumble over."""
        waiting, gate, left = threading.Event(), threading.Event(), threading.Event()

        class Held(HandDriven):
            def streaming(self, *arguments):
                waiting.set()
                gate.wait(DEADLINE)
                return super().streaming(*arguments)

            def close_request(self, request):
                super().close_request(request)
                left.set()

        self.setting(HANG_UP_SECONDS=0.05)
        with Held() as server:
            self.stream(server)
            self.assertTrue(waiting.wait(DEADLINE))
        gate.set()
        self.assertTrue(left.wait(DEADLINE))

    def test_what_is_queued_at_the_end_is_still_delivered(self):
        """A client that is behind when the server ends gets every event that was published, and
        then the end."""
        self.setting(SEND_BUFFER_BYTES=4096, DRAIN_SECONDS=float(DEADLINE), HEARTBEAT_SECONDS=0.1)
        server = HandDriven()
        server.__enter__()
        server.tick([])  # at the first tick everybody begins anew
        behind = self.stream(server, receive_buffer=2048).caught_up()
        for _ in range(50):
            server.tick([metric("padding", 1, "x" * 2000)])

        def read_at_the_end():
            if eventually(lambda: not accepts(server.server_port)):
                behind.to_the_end()

        reading = threading.Thread(target=read_at_the_end)
        reading.start()
        server.__exit__(None, None, None)
        reading.join(DEADLINE)
        self.assertEqual(ids(behind.events), [f"{TICK + n * 1000}-1" for n in range(2, 52)])
        self.assertEqual(server.closed, ["shutdown"])

    def test_systems_that_lack_something(self):
        """Without SCHED_BATCH, IPv6 options or the resource module the server serves. Where the
        kernel does not say what a client takes, a write that lasts ends its stream."""
        for holder, name in (
            (os, "SCHED_BATCH"),
            (os, "sched_setscheduler"),
            (socket, "IPV6_V6ONLY"),
        ):
            if not hasattr(holder, name):
                continue
            with self.subTest(missing=name), mock.patch.object(holder, name, create=True):
                delattr(holder, name)
                with HandDriven() as server, Stream(server.server_address) as stream:
                    stream.opened()
                    stream.until_id(server.tick())
                    self.assertEqual(fetch(server.server_address, "/")[0], 200)
        with (
            mock.patch.object(selectors, "DefaultSelector", WindowsSelector),
            HandDriven() as server,
        ):
            self.assertTrue(eventually(lambda: WindowsSelector.times_empty))
            with Stream(server.server_address) as stream:
                stream.opened()
            self.assertTrue(eventually(lambda: server.closed == ["closed"]))
            self.assertEqual(fetch(server.server_address, "/")[0], 200)
        with mock.patch.dict(sys.modules, {"resource": None}), HandDriven() as server:
            self.assertEqual(fetch(server.server_address, "/")[0], 200)
        with (
            mock.patch.object(
                os, "sched_setscheduler", side_effect=PermissionError(errno.EPERM, "no")
            ),
            HandDriven() as server,
        ):
            self.assertEqual(fetch(server.server_address, "/")[0], 200)
        with (
            mock.patch.object(sse, "sys", mock.Mock(wraps=sys, platform="another")),
            mock.patch.object(sse.Handler, "timeout", 0.3),
            HandDriven() as server,
            Stream(server.server_address, receive_buffer=2048) as stream,
        ):
            stream.opened()
            server.tick([alert("info", "x" * 500_000)])
            self.assertTrue(eventually(lambda: server.closed == ["stalled"]), server.closed)

    def test_hosts(self):
        """IPv4, IPv6 and names; `::` answers IPv4 too; the URL is one that a browser can open."""
        for host, urls in (
            ("127.0.0.1", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
            ("::1", "[::1]"),
            ("[::1]", "[::1]"),
            ("::", "127.0.0.1"),
            ("localhost", None),
        ):
            if ":" in host and not HAS_IPV6:
                continue
            with self.subTest(host=host), sse.DashboardServer(host, 0, sources=[]) as server:
                if urls:
                    self.assertEqual(server.url, f"http://{urls}:{server.server_port}/")
                self.assertEqual(
                    fetch(
                        (
                            server.url.split("//")[1].rsplit(":", 1)[0].strip("[]"),
                            server.server_port,
                        ),
                        "/",
                    )[0],
                    200,
                )
                if host == "::":
                    self.assertEqual(fetch(("127.0.0.1", server.server_port), "/")[0], 200)

    @ON_LINUX
    def test_an_ended_server_leaves_nothing(self):
        """No thread, no descriptor: a program may start and end a server as often as it likes,
        whatever its clients do, and also one whose port is taken."""
        self.setting(DRAIN_SECONDS=0.1)
        taken = self.serve()
        gc.disable()
        self.addCleanup(gc.enable)
        before = threads_of(), descriptors_of()
        for _ in range(3):
            with contextlib.ExitStack() as clients, HandDriven(max_clients=8) as server:
                for path in (*STREAMS, "/", "/x"):  # answered, the last two stay open
                    clients.enter_context(Stream(server.server_address, path)).read()
                deaf = Stream(server.server_address, receive_buffer=2048)
                clients.enter_context(deaf).opened()
                for begin in (b"", b"GET / HT", b"", b"", b"", b""):  # some get a 503
                    silent = socket.create_connection(server.server_address, DEADLINE)
                    clients.enter_context(silent).sendall(begin)
                server.tick([alert("info", "x" * 500_000)])
                self.assertTrue(
                    eventually(lambda server=server: server.status()["ended"]["refused"])
                )
            self.assertEqual(server.deadlines, {})
            with self.assertRaises(OSError):
                sse.DashboardServer(port=taken.server_port, sources=[])
        self.assertTrue(eventually(lambda: threads_of() <= before[0]))
        self.assertEqual(descriptors_of(), before[1])

    def test_no_name_is_looked_up_in_reverse(self):
        """Neither the start nor a request asks a name server for the name of an address."""
        with (
            mock.patch.object(socket, "getfqdn", side_effect=AssertionError),
            mock.patch.object(socket, "gethostbyaddr", side_effect=AssertionError),
        ):
            server = self.serve()
            self.assertEqual(fetch(server.server_address, "/")[0], 200)


# --- Command line --------------------------------------------------------------------------------


class TheCommand(Promises):
    def test_the_defaults_are_those_of_the_contract(self):
        """What the options are when none is given, and the limits that have no option."""
        options = vars(sse.parse_arguments([]))
        self.assertEqual(
            options,
            {
                "host": "127.0.0.1",
                "port": 8000,
                "interval": 1.0,
                "seed": 0,
                "history": 300.0,
                "max_clients": 1000,
                "verbose": False,
            },
        )
        self.assertEqual(
            (
                sse.RETRY_MS,
                sse.HEARTBEAT_SECONDS,
                sse.FUTURE_SECONDS,
                sse.QUEUE_FRAMES,
                sse.REQUEST_SECONDS,
            ),
            ((2000, 4000), 15, 60, 100, 10),
        )
        self.assertLessEqual(
            sse.HEARTBEAT_SECONDS + sse.SEND_TIMEOUT_SECONDS, 30
        )  # a vanished peer is gone by then
        self.assertLessEqual(sse.WATCH_SECONDS, 0.5)  # ... and one that closes, within one second
        self.assertLess(sse.WATCH_SECONDS + sse.DRAIN_SECONDS + 2 * sse.HANG_UP_SECONDS, 2)

    def test_the_options_reach_the_server(self):
        """Interval, seed, history and the number of clients are those that were asked for."""
        with Command(
            "--interval", "0.5", "--seed", 7, "--history", 3, "--max-clients", 1
        ) as command:
            with Stream(command.address, "/api/events/all?lastEventId=1-1") as stream:
                events = stream.until(lambda stream: len(ids(stream.events)) >= 42)
                self.assertIn(b" 503 ", exchange(command.address, b""))
            self.assertEqual(events[0][1]["reason"], "expired")
            status = next(data for kind, data, _ in events if kind == "status")
            self.assertEqual((status["connections"], status["interval_seconds"]), (1, 0.5))
            ticks = sorted({int(last.partition("-")[0]) for last in ids(events)})
            self.assertEqual({tick % 500 for tick in ticks}, {0})
            values = [
                data["value"]
                for kind, data, last in events
                if kind == "metric" and last.startswith(str(ticks[0]))
            ]
            self.assertEqual(
                values,
                [
                    event.fields["value"]
                    for event in Simulation(7, 0.5).events_at(ticks[0])
                    if event.type == "metric"
                ],
            )
            self.assertGreater(
                sse.timestamp(ticks[0] + 3500), events[0][1]["timestamp"]
            )  # no more than was asked for

    def test_what_an_operator_sees(self):
        """With --verbose, a line for each request and each stream's end.

        Without it there is nothing, whatever clients do."""
        with Command() as quiet, Command("--verbose") as verbose:
            for command in (quiet, verbose):
                exchange(command.address, b"\x1b[2J garbage\r\n\r\n")
                with Stream(command.address, "/api/events/metrics") as stream:
                    stream.until(lambda stream: stream.events)
            for command, ends, bad_requests in ((quiet, 0, 0), (verbose, 1, 1)):

                def is_gone(address=command.address):
                    return json.loads(fetch(address, "/api/status")[2])["ended"]["closed"]

                self.assertTrue(eventually(is_gone))
                status, errors, _ = command.end()
                self.assertEqual(status, 0)
                found = re.findall(
                    r"127\.0\.0\.1 /api/events/metrics ended after \d+\.\d s and \d+ events: "
                    r"closed\n",
                    errors,
                )
                self.assertEqual(
                    (len(found), errors.count(" 400 "), "\x1b" in errors),
                    (ends, bad_requests, False),
                )
                self.assertEqual(bool(errors), command is verbose)

    def test_the_url_is_printed_once_it_serves(self):
        """One line; port 0 shows the real port; the page, a stream and the status answer."""
        with Command() as command:
            self.assertRegex(command.url, r"http://127\.0\.0\.1:\d+/")
            self.assertEqual(fetch(command.address, "/")[0], 200)
            stream = Stream(command.address, "/api/events/metrics")
            names = [
                data["name"]
                for _, data, _ in stream.until(lambda stream: len(stream.events) >= 7)[:7]
            ]
            stream.socket.close()
            self.assertEqual(names, list(sse.READINGS)[:7])
            self.assertEqual(command.end()[:2], (0, ""))

    def test_a_wrong_command_line(self):
        """argparse's usage, one line that says what is allowed, status 2."""
        for options, words in (
            (["--port", "65536"], "0 to 65535"),
            (["--port", "-1"], "0 to 65535"),
            (["--port", "x"], "0 to 65535"),
            (["--port", "1.5"], "0 to 65535"),
            (["--interval", "0.04"], "0.05 to 60"),
            (["--interval", "61"], "0.05 to 60"),
            (["--interval", "nan"], "0.05 to 60"),
            (["--interval", "inf"], "0.05 to 60"),
            (["--history", "-1"], "0 to 3600"),
            (["--history", "3601"], "0 to 3600"),
            (["--max-clients", "0"], "1 to 100000"),
            (["--seed", "x"], "int"),
            (["--max-clients", "100001"], "1 to 100000"),
            (["--history", "3600", "--interval", "0.05"], "at most 1000 seconds"),
            (["--nonsense"], "unrecognized"),
        ):
            output, errors = io.StringIO(), io.StringIO()
            with (
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(errors),
                self.assertRaises(SystemExit) as ended,
            ):
                sse.parse_arguments(options)
            self.assertEqual((ended.exception.code, output.getvalue()), (2, ""), options)
            *usage, line = errors.getvalue().splitlines()
            self.assertTrue(usage[0].startswith("usage:"))
            self.assertIn(words, line)
        done = subprocess.run(
            [sys.executable, HERE / "sse_dashboard.py", *options],
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
        )
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn(words, done.stderr.splitlines()[-1])

    def test_what_stands_in_the_way_is_said_in_one_line(self):
        """One line on standard error, status 1.

        So for a port that is taken, a host that is none, and a missing page."""
        with (
            socket.create_server(("127.0.0.1", 0)) as taken,
            tempfile.TemporaryDirectory() as empty,
        ):
            alone = shutil.copy(HERE / "sse_dashboard.py", empty)
            for script, options, words in (
                (HERE / "sse_dashboard.py", ["--port", str(taken.getsockname()[1])], "--port"),
                (HERE / "sse_dashboard.py", ["--port", "0", "--host", "host.invalid"], "--host"),
                (HERE / "sse_dashboard.py", ["--port", "0", "--host", "a..b"], "--host"),
                (alone, ["--port", "0"], "index.html"),
            ):
                done = subprocess.run(
                    [sys.executable, script, *options],
                    text=True,
                    timeout=30,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                self.assertEqual(
                    (done.returncode, done.stdout, done.stderr.count("\n")), (1, "", 1), done.stderr
                )
                self.assertIn(words, done.stderr)

    def test_without_a_thread_it_says_so_in_one_line(self):
        """One line on standard error that says what is missing, status 1, no traceback."""
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        if hard != resource.RLIM_INFINITY:
            self.skipTest("needs to set a stack of any size: ulimit -Hs unlimited")

        def lower():  # a stack that no address space holds: so no user gets a thread, root neither
            resource.setrlimit(resource.RLIMIT_STACK, (1 << 48, hard))

        done = subprocess.run(
            [sys.executable, HERE / "sse_dashboard.py", "--port", "0"],
            preexec_fn=lower,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        self.assertEqual((done.returncode, done.stdout), (1, ""), done.stderr)
        self.assertRegex(
            done.stderr,
            r"\Acannot serve on .*: can't start new thread; allow it more threads.*\n\Z",
        )

    def test_an_older_python_is_told_which_one_it_takes(self):
        """Python 3.8 and 3.9 can read the file, and it tells them in a line: status 1."""
        script = str(HERE / "sse_dashboard.py")
        ast.parse(Path(script).read_text(encoding="utf-8"), feature_version=(3, 8))
        pretend = (
            "import runpy, sys\n"
            "sys.version_info, sys.version = (3, 9, 18, 'final', 0), '3.9.18 (main)'\n"
            "runpy.run_path(sys.argv[1], run_name='__main__')"
        )
        runs = {"3.9": [sys.executable, "-c", pretend, script]}
        for version in ("3.8", "3.9"):
            python = [f"python{version}", script]
            with contextlib.suppress(OSError):
                if not subprocess.run([python[0], "-V"], capture_output=True).returncode:
                    runs[f"{version} itself"] = python
        for version, command in runs.items():
            with self.subTest(version):
                done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
                self.assertEqual((done.returncode, done.stdout), (1, ""))
                self.assertRegex(
                    done.stderr,
                    rf"\A\S+ needs Python 3\.10 or newer; this is {version[:3]}\.\d+\n\Z",
                )

    def test_it_can_be_run_through_a_symbolic_link(self):
        """The page lies beside the script, wherever the link to the script is."""
        with tempfile.TemporaryDirectory(prefix="a folder ") as folder:
            link = Path(folder, "dashboard")
            link.symlink_to(HERE / "sse_dashboard.py")
            with Command(script=link) as command:
                self.assertEqual(fetch(command.address, "/")[0], 200)

    def test_where_ipv6_is_off_the_url_can_be_reached_too(self):
        """`::`, and a name that has an address of both families, are served over IPv4 then."""
        program = """
import socket, sys, urllib.request, sse_dashboard
look_up = socket.getaddrinfo
def both(host, *rest, **more):
    hosts = ["::1", "127.0.0.1"] if host == "both.test" else [host]
    return [found for one in hosts for found in look_up(one, *rest, **more)]
socket.getaddrinfo = both
for host in sys.argv[1:]:
    with sse_dashboard.DashboardServer(host, 0, sources=[]) as server:
        print(urllib.request.urlopen(server.url, timeout=5).status)
"""
        off = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up && exec "
        alone = ["unshare", "--net", "sh", "-c", off + '"$0" "$@"', sys.executable, "-c"]
        if not can_run([*alone, ""]):
            self.skipTest("needs the right to make a network without IPv6: run as root")
        done = subprocess.run(
            [*alone, program, "::", "both.test"],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=2 * DEADLINE,
        )
        self.assertEqual((done.stdout, done.stderr), ("200\n200\n", ""))

    def test_nobody_waits_for_the_log(self):
        """Requests and the end go on when nobody reads standard error, or it is full or closed.

        Lines are lost then. They are counted by the first line after them."""
        self.needs_descriptors(1500)  # or the log also says that there is none
        program = "import sys, sse_dashboard as s; s.LOG_LINES = 50; sys.exit(s.main())"
        chatty = (program, "--verbose", "--port", 0)
        requests = 200  # the pipe holds some hundred lines
        request = b"GET /%s HTTP/1.1\r\nHost: test\r\n\r\n" % (b"x" * 500)

        def ask(address, count):
            for _ in range(count):
                self.assertIn(b" 404 ", exchange(address, request))

        def end_in_time(command):
            start = time.monotonic()
            command.process.send_signal(signal.SIGTERM)
            self.assertEqual(command.process.wait(DEADLINE), 0)
            self.assertLess(time.monotonic() - start, 2)

        with self.subTest("a pipe that nobody reads"), Program(*chatty) as command:
            ask(command.address, requests)
            end_in_time(command)
            self.assertLess(len(command.process.stderr.read()), 70_000)
        with self.subTest("a pipe that is read again"), Program(*chatty) as command:
            ask(command.address, requests)
            lines = iter(command.process.stderr.readline, "")
            reading = threading.Thread(target=lambda: log.extend(lines))
            log = []
            reading.start()

            def lost():
                told = re.findall(r"\((\d+) lines of the log were lost here\)\n", "".join(log))
                return sum(map(int, told))

            def are_told(count):
                return "".join(log).count(" 404 ") + lost() == count

            for count in range(requests + 1, requests + 100):
                ask(command.address, 1)  # it may be lost too, and is counted by the next
                if eventually(lambda count=count: are_told(count), 0.1):
                    break
            self.assertTrue(are_told(count), (count, lost(), len(log)))
            self.assertGreater(lost(), 0)
            end_in_time(command)
            reading.join(DEADLINE)
        with self.subTest("a terminal that Ctrl-S has stopped"):
            ours, theirs = os.openpty()
            self.addCleanup(os.close, ours)
            termios.tcflow(theirs, termios.TCOOFF)
            with Command("--verbose", stderr=theirs) as command:
                os.close(theirs)
                ask(command.address, 20)
                end_in_time(command)
        children = []
        for port, redirected in zip(free_ports(3), ("2>/dev/full", "2>&-", ">&- 2>&-")):
            shell = ["sh", "-c", f'exec "$0" "$@" {redirected}']
            command = Command("--verbose", port=port, wrapped=shell)
            children.append((port, redirected, command))
        for port, redirected, command in children:
            with self.subTest(redirected), command:
                self.assertTrue(eventually(lambda port=port: answers(port)))
                ask(("127.0.0.1", port), 10)
                end_in_time(command)

    def test_sigterm_and_ctrl_c_are_one_orderly_path(self):
        """Status 0 within 2 s, nothing on standard error.

        Open streams end on a whole event, and silent connections are closed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            with Command("--interval", "0.5") as command:  # no buffer is ever full
                streams = [Stream(command.address, path).opened() for path in STREAMS * 3]
                silent = [socket.create_connection(command.address, DEADLINE) for _ in range(5)]
                status, errors, seconds = command.end(number)
                self.assertEqual((status, errors), (0, ""))
                self.assertLess(seconds, 2)
                for stream in streams:
                    self.assertTrue(stream.ended_on_a_whole_event(), stream.raw[-300:])
                    stream.socket.close()
                for connection in silent:
                    connection.close()

    def test_sigterm_with_1000_streams_and_100_silent_connections(self):
        """However many are connected: status 0 within 2 s, whole last events, no word."""
        self.needs_threads(1200)
        self.needs_descriptors(3000)
        with Command("--max-clients", 1200) as command:
            streams = [Stream(command.address) for _ in range(1000)]
            silent = [socket.create_connection(command.address) for _ in range(100)]
            for stream in streams:
                stream.opened()
            status, errors, seconds = command.end()
            self.assertEqual((status, errors), (0, ""))
            self.assertLess(seconds, 2)
            for stream in streams:
                self.assertTrue(stream.ended_on_a_whole_event())
                stream.socket.close()
            for connection in silent:
                connection.close()

    def test_clients_that_keep_sending_do_not_delay_the_end(self):
        """300 streams whose clients send all the time: status 0 within 2 s."""
        self.needs_threads(350)
        self.needs_descriptors(1500)
        with Command("--max-clients", 400) as command:
            streams = [Stream(command.address).opened() for _ in range(300)]
            stop = threading.Event()

            def talk():
                while not stop.is_set():
                    for stream in streams:
                        with contextlib.suppress(OSError):
                            stream.socket.send(b"x" * 20_000, socket.MSG_DONTWAIT)

            talking = threading.Thread(target=talk)
            talking.start()
            try:
                status, errors, seconds = command.end()
            finally:
                stop.set()
                talking.join()
            self.assertEqual((status, errors), (0, ""))
            self.assertLess(seconds, 2)
            for stream in streams:
                stream.socket.close()

    def test_a_stuck_client_does_not_delay_the_end(self):
        """One that never reads is cut at the end: still within 2 s."""
        with Command("--interval", "0.05", "--history", "30") as command:
            self.stuck_client(command.address)
            status, errors, seconds = command.end()
            self.assertEqual((status, errors), (0, ""))
            self.assertTrue(sse.DRAIN_SECONDS <= seconds < 2, seconds)

    def stuck_client(self, address):
        """It never reads, and the server has filled all that the kernels take for it."""
        stuck, reader = (
            Stream(address, "/api/events/all?history=1000", receive_buffer=size)
            for size in (2048, 0)
        )
        self.addCleanup(stuck.socket.close)
        with reader:  # it has got through the history, so the other can get no further
            reader.until(lambda stream: len(stream.events) > 3500)

    def test_a_second_ctrl_c_leaves_at_once(self):
        """A second Ctrl-C, while streams still end, ends the process at once, by the signal."""
        program = "import sys, sse_dashboard as s; s.DRAIN_SECONDS = 60; sys.exit(s.main())"
        with Program(program, "--port", 0, "--interval", "0.05", "--history", "30") as command:
            self.stuck_client(command.address)
            command.process.send_signal(signal.SIGINT)
            self.assertTrue(eventually(lambda: not self.accepts(command.address)))
            self.assertEqual(command.end(signal.SIGINT)[:2], (-signal.SIGINT, ""))

    def accepts(self, address):
        with contextlib.suppress(OSError), socket.create_connection(address):
            return True
        return False

    def test_the_port_can_be_taken_again_at_once(self):
        """A server started where one has just ended, with open streams, gets its port."""
        port = 0
        for _ in range(3):
            with Command(port=port) as command:
                self.assertTrue(command.address, command.url)
                port = command.address[1]
                with Stream(command.address) as stream:
                    stream.opened()
                    self.assertEqual(command.end()[:2], (0, ""))


class Restarts(Promises):
    def test_two_servers_of_one_seed_send_the_same(self):
        """Servers of one seed that began at different moments send the same for the same ticks."""
        with Command("--seed", 3, "--interval", "0.05", "--history", 2) as one:
            with Stream(one.address, "/api/events/all?history=2") as first:
                first.until(lambda stream: len(stream.events) > 250)
                with (
                    Command("--seed", 3, "--interval", "0.05", "--history", 1) as two,
                    Stream(two.address, "/api/events/all?history=1") as second,
                ):
                    second.until(lambda stream: len(stream.events) > 150)
                    until = ids(second.events)[-1]
                    first.until(lambda stream: until in ids(stream.events))
        events = [
            {
                part.rpartition(b"\nid: ")[2]: part
                for part in stream.raw.split(b"\n\n")[:-1]
                if b"\nid: " in part
            }
            for stream in (first, second)
        ]
        shared = events[0].keys() & events[1].keys()
        self.assertGreater(len(shared), 100)
        self.assertEqual(
            {key: events[0][key] for key in shared}, {key: events[1][key] for key in shared}
        )

    def test_20_clients_through_6_kills(self):
        """Cut at random, each stream is taken up again by its last ID, over SIGKILL and restart.

        Put together, it is the stream that was never cut."""
        self.needs_threads(100)
        chance, interval = random.Random(11), 0.05
        options = ("--seed", 9, "--interval", interval, "--history", 20)
        stopping, results, failures = threading.Event(), [b""] * 20, []

        def client(number):
            last, lengths = "", random.Random(number)
            while not stopping.is_set():
                got, cut_after = b"", lengths.randrange(2_000, 60_000)
                try:
                    query = f"?lastEventId={last}" if last else ""
                    with Stream(address, f"/api/events/all{query}") as stream:
                        while len(got) < cut_after and not stopping.is_set():
                            chunk = stream.socket.recv(65536)
                            if not chunk:
                                break
                            got += chunk
                except OSError:
                    stopping.wait(0.01)
                parts = got.partition(b"\r\n\r\n")[2].split(b"\n\n")[:-1]
                failures.extend(part for part in parts if part.startswith(b"event: reset"))
                if events := [part for part in parts if b"\nid: " in part]:
                    last = events[-1].rpartition(b"\nid: ")[2].decode()
                    results[number] += b"\n\n".join(events) + b"\n\n"

        threads = [threading.Thread(target=client, args=(number,)) for number in range(20)]
        port = 0
        try:
            for life in range(7):
                with Command(*options, port=port) as command:
                    address = command.address
                    if not life:
                        port = address[1]
                        for thread in threads:
                            thread.start()
                    count = 100 if life == 6 else chance.randrange(1, 20)  # between two kills
                    with Stream(address) as stream:
                        stream.until(lambda stream, count=count: len(stream.events) > count)
                    if life == 6:
                        self.assertTrue(eventually(lambda: all(results)))
        finally:
            stopping.set()
            join_all(thread for thread in threads if thread.ident)
        self.assertEqual(failures, [])
        simulation = Simulation(9, interval)
        first = min(int(re.search(rb"\nid: (\d+)-", whole)[1]) for whole in results)
        last = max(int(re.findall(rb"\nid: (\d+)-", whole)[-1]) for whole in results)
        never_cut = [
            event.encode(tick, f"{tick}-{number}")
            for tick in range(first, last + 50, 50)
            for number, event in enumerate(simulation.events_at(tick), 1)
        ]
        for whole in results:
            begin = never_cut.index(whole.partition(b"\n\n")[0] + b"\n\n")
            self.assertEqual(whole, b"".join(never_cut[begin : begin + whole.count(b"\n\n")]))
            self.assertGreater(whole.count(b"\n\n"), 100)


# --- As a module ---------------------------------------------------------------------------------

CRITICAL = "Critical CPU detected: 96 %"


class AsAModule(Promises):
    def test_importing_starts_nothing(self):
        """No thread, no socket, no output."""
        program = "import sse_dashboard, threading; assert threading.active_count() == 1"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.assertEqual((done.returncode, done.stdout), (0, b""))

    def test_own_sources_beside_the_simulation(self):
        """Their metrics come with the simulated ones, and can be asked for by name."""
        own = Counting()
        with sse.DashboardServer(
            port=0, sources=[own, Simulation(interval=0.05)], interval=0.05, history=10
        ) as server:
            own.wait_for(2)
            with Stream(server.server_address, "/api/events/metrics?history=5") as stream:
                events = stream.until(
                    lambda stream: any(data["name"] == "own" for _, data, _ in stream.events)
                )
            self.assertEqual({data["name"] for _, data, _ in events} - {"own"}, set(sse.READINGS))
            with Stream(server.server_address, "/api/events/metrics?name=own") as stream:
                self.assertEqual(stream.until(lambda stream: stream.events)[0][1]["value"], 1)

    def test_wrong_use_of_the_server_raises(self):
        """Where the mistake is made, with a sentence that says what is allowed."""
        load = sse.Panel("Load", {"load": ""})

        def shown(*panels):
            source = Counting()
            source.panels = panels
            return source

        for options, error, words in (
            ({"interval": 0}, ValueError, "from 0.05 to 60"),
            ({"interval": 0.001}, ValueError, "from 0.05 to 60"),
            ({"interval": 120}, ValueError, "from 0.05 to 60"),
            ({"interval": float("inf")}, ValueError, "from 0.05 to 60"),
            ({"interval": float("nan")}, ValueError, "from 0.05 to 60"),
            ({"history": -1}, ValueError, "history"),
            ({"history": float("nan")}, ValueError, "history"),
            ({"history": 3601}, ValueError, "history"),
            ({"history": 3600, "interval": 0.05, "sources": []}, ValueError, "20000 ticks"),
            ({"max_clients": 0}, ValueError, "max_clients"),
            ({"interval": 0.5, "sources": [Simulation()]}, ValueError, "0.5 s"),
            ({"max_clients": 100_001}, ValueError, "max_clients"),
            ({"sources": [None]}, TypeError, "events_at"),
            ({"sources": [metric]}, TypeError, "events_at"),
            ({"sources": [shown(None)]}, TypeError, "Panel"),
            ({"sources": [shown(load)], "panels": [load]}, ValueError, "load is in two panels"),
            ({"panels": [{"title": "x"}]}, TypeError, "Panel"),
            ({"panels": [load, load]}, ValueError, "load is in two panels"),
            ({"panels": sse.PANELS[:1]}, ValueError, "cpu_usage is in two panels"),
            ({"sources": [Counting(), Simulation(), Simulation()]}, ValueError, "two panels"),
            ({"title": 5}, TypeError, "title"),
            ({"title": "\ud800"}, ValueError, "surrogate"),
        ):
            with self.assertRaisesRegex(error, words):
                sse.DashboardServer(port=0, **options)

    def test_a_panel_that_no_page_could_show_raises(self):
        """Where it is made, with a sentence that names the mistake."""
        one = {"x": ""}
        for arguments, options, words in (
            ((" ", one), {}, "title"),
            ((5, one), {}, "title"),
            (("x", {}), {}, "metrics"),
            (("x", ["x"]), {}, "metrics"),
            (("x", {"x": 5}), {}, "label"),
            (("x", {5: "x"}), {}, "label"),
            (("x", {"": "x"}), {}, "not empty"),
            (("x", {"a,b": "x"}), {}, "comma"),
            (("\ud800", one), {}, "surrogate"),
            (("x", {"x": "\ud800"}), {}, "surrogate"),
            (("x", types.MappingProxyType(one)), {}, "mappingproxy"),
            (("x", one), {"min": "0"}, "finite numbers"),
            (("x", one), {"max": float("inf")}, "finite numbers"),
            (("x", one), {"min": float("nan")}, "finite numbers"),
            (("x", one), {"max": True}, "finite numbers"),
            (("x", one), {"min": 5, "max": 5}, "below its max"),
            (("x", one), {"gauge": "dial", "min": 0, "max": 1}, "arc"),
            (("x", one), {"gauge": "arc"}, "min and a max"),
            (("x", one), {"gauge": "arc", "min": 0}, "min and a max"),
            (("x", one), {"gauge": "arc", "max": 9}, "min and a max"),
            (("x", {"x": "", "y": ""}), {"gauge": "bar", "min": 0, "max": 1}, "one metric"),
            (("x", one), {"thresholds": {"fatal": 5}}, "warning and error"),
            (("x", one), {"thresholds": [5]}, "warning and error"),
            (("x", one), {"thresholds": {"warning": 5, "error": 5}}, "higher"),
            (("x", one), {"thresholds": {"error": 4, "warning": 5}}, "higher"),
            (("x", one), {"thresholds": {"warning": True}}, "finite numbers"),
            (("x", one), {"decimals": 2.5}, "decimals"),
            (("x", one), {"decimals": -1}, "decimals"),
            (("x", one), {"decimals": 10}, "decimals"),
            (("x", one), {"decimals": True}, "decimals"),
            (("x", one), {"decimals": False}, "decimals"),
            (("x", one), {"decimals": 2.0}, "decimals"),
        ):
            with self.assertRaisesRegex((TypeError, ValueError), words):
                sse.Panel(*arguments, **options)

    def test_what_a_program_shows_reaches_the_wire(self):
        """The title, its own panels before those of its sources, and the alerts of their
        thresholds."""
        values = iter([5, 85, 96])

        class Busy:
            panels = (sse.Panel("CPU", {"cpu": ""}, thresholds={"warning": 80, "error": 95}),)

            def events_at(self, tick):
                yield metric("cpu", next(values, 5), "%")

        own = sse.Panel("Fan", {"fan": "now"}, gauge="bar", min=0, max=9, decimals=1)
        sources = [sse.WithAlerts(Busy()), Simulation(interval=0.05)]
        with sse.DashboardServer(
            port=0, interval=0.05, history=5, title="Räume <1>", panels=[own], sources=sources
        ) as server:
            stream = self.stream(server, "/api/events/all?history=300")
            events = stream.until(
                lambda stream: any(data.get("message") == CRITICAL for _, data, _ in stream.events)
            )
            page = fetch(server.server_address, "/")[2].decode()
        for tag in ("title>", 'h1 id="title">'):
            self.assertIn(f"<{tag}Räume &lt;1&gt;</", page)
        (shown,) = [data for kind, data, _ in events if kind == "panels"]
        self.assertEqual(shown["title"], "Räume <1>")
        self.assertEqual(
            shown["panels"][:2],
            [
                {"title": "Fan", "metrics": {"fan": "now"}, "gauge": "bar"}
                | {"min": 0, "max": 9, "decimals": 1},
                {"title": "CPU", "metrics": {"cpu": ""}, "thresholds": Busy.panels[0].thresholds},
            ],
        )
        self.assertEqual(
            [panel["title"] for panel in shown["panels"][2:]], [panel.title for panel in sse.PANELS]
        )
        told = [
            (data["level"], data["message"]) for _, data, _ in events if data.get("metric") == "cpu"
        ]
        self.assertEqual(told, [("warning", "High CPU detected: 85 %"), ("error", CRITICAL)])

    def test_names_go_with_the_history(self):
        """Ten new ones at each tick: a filter knows those that are held, and memory does not
        grow."""
        server = self.serve(ticks=0, sources=[Counting(True)], history=5)

        def tick(count):
            for _ in range(count):
                at = server.now + 1000
                server.tick([metric(f"m{at}-{number}", number) for number in range(10)])

        tick(20)
        held = [f"m{server.now - 1000 * ago}-{number}" for ago in (4, 0) for number in (0, 9)]
        for name in held:
            stream = self.stream(server, f"/api/events/metrics?history=60&name={name}")
            self.assertEqual(stream.until(lambda stream: stream.events)[0][1]["name"], name)
        status, _, body = fetch(
            server.server_address, f"/api/events/metrics?name=m{server.now - 5000}-9"
        )
        self.assertEqual(status, 400)
        allowed = json.loads(body)["error"]
        self.assertEqual([name for name in held if name not in allowed], [])
        self.assertEqual(len(re.findall(r"m\d+-\d", allowed)), 50)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        tick(20)
        before = tracemalloc.get_traced_memory()[0]
        tick(500)
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 50_000)

    def test_thresholds_of_a_program_make_alerts(self):
        """By the simulation's rule: at once when one is crossed, and half a minute below it."""
        values = {0: 5, 1: 85, 2: 66_436_489_637, 3: 90, 4: 0.1 + 0.2, 33: 5, 34: 0.1 + 0.2}

        class Busy:
            panels = (sse.Panel("CPU", {"cpu": ""}, thresholds={"warning": 80, "error": 95}),)

            def events_at(self, tick):
                yield metric("cpu", values.get(tick // 1000, 5), "%")

        source = sse.WithAlerts(Busy())
        self.assertEqual(source.panels, Busy.panels)
        told = []
        for second in range(60):
            for event in source.events_at(second * 1000):
                if event.type == "alert":
                    told.append((second, event.fields["level"], event.fields["message"]))
        self.assertEqual(
            told,
            [
                (1, "warning", "High CPU detected: 85 %"),
                (2, "error", "Critical CPU detected: 66436489637 %"),
                (34, "success", "CPU back to normal: 0.3 %"),
            ],
        )

    def test_what_is_the_servers_own_to_say(self):
        """A program's event cannot pass for one of these types."""
        server = self.serve()
        for type in ("status", "panels", "reset"):
            with self.assertRaisesRegex(ValueError, "the server's own"):
                server.publish(Event(type, {}))
        with self.assertRaisesRegex(TypeError, "fields"):
            Event("deploy", None)

    def test_a_name_that_is_published_now_and_then(self):
        """Beside a source whose names are known: it is let in again when its value is forgotten,
        and so is who resumes. A 400 would stop a browser for good."""
        server = self.serve(sources=[Counting(True)], history=2)
        path = "/api/events/metrics?name=loss"
        self.assertEqual(fetch(server.server_address, path)[0], 400)
        self.stream(server, f"{path}&lastEventId={server.now}-1").opened()
        server.publish(metric("loss", 1))
        for _ in range(5):
            server.tick()
        self.assertNotIn("loss", server.broadcaster.metric_names())
        stream = self.stream(server, path).opened()
        server.publish(metric("loss", 2))
        self.assertEqual(stream.until(lambda stream: stream.events)[0][1]["value"], 2)

    def test_a_name_that_a_source_has_not_spoken_of_yet(self):
        """It is waited for, as a 400 would stop a browser for good."""
        server = self.serve(sources=[Counting()])
        stream = self.stream(server, "/api/events/metrics?name=later").opened()
        server.publish(metric("later", 5))
        self.assertEqual(stream.until(lambda stream: stream.events)[0][1]["value"], 5)

    def test_publishing_before_the_beginning(self):
        """It raises: there is no tick yet that the event could belong to."""
        with self.assertRaisesRegex(RuntimeError, "not begun"):
            sse.Broadcaster().publish(alert("info", "x"))

    def test_publish_from_any_thread(self):
        """Events between two ticks reach every client at once, with IDs in order.

        Several threads may publish at a time."""
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(1e-6)  # so that the threads get into each other's way
        server = self.serve()
        stream = self.stream(server, "/api/events/alerts").opened()
        threads = [
            threading.Thread(target=lambda: [server.publish(alert("info", "x")) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        events = stream.until(lambda stream: len(stream.events) >= 201)
        numbers = [tuple(map(int, last.split("-"))) for _, _, last in events]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_hooks_see_clients_come_and_go(self):
        """stream_opened and stream_closed are called with the address, the route and the reason."""
        seen = []

        class Watching(HandDriven):
            def stream_opened(self, address, path):
                seen.append((address, path))

            def stream_closed(self, address, path, reason, seconds, events):
                seen.append((address, path, reason, events))

        self.setting(WATCH_SECONDS=0.05)
        server = self.serve(kind=Watching)
        self.stream(server, "/api/events/metrics").opened().until(
            lambda stream: len(stream.events) == 7
        )
        self.assertEqual(seen, [("127.0.0.1", "/api/events/metrics")])
        server.__exit__(None, None, None)
        self.assertEqual(seen[1], ("127.0.0.1", "/api/events/metrics", "shutdown", 7))

    def test_the_programs_in_the_readme_run(self):
        """Each has under twenty lines, serves what it says, and ends in order and soon at a signal.

        The log that is followed is silent meanwhile."""
        machine, training, follower = readme_programs()
        children = []
        with tempfile.NamedTemporaryFile() as log:
            for program, arguments, names in (
                (machine, [], {"CPU", "Memory", "Disk", "received", "sent"}),
                (training.replace("0.2, 2", "0, 0.1"), [], {"loss", "accuracy", "learning_rate"}),
                (follower, [log.name], {"errors"}),
            ):
                lines = [line for line in program.splitlines() if line.strip()]
                self.assertLess(len(lines), 20)
                if program != machine or Path("/proc/meminfo").exists():
                    for number in (signal.SIGTERM, signal.SIGINT):
                        quick = program.replace("port=0", "port=0, interval=0.25")
                        children.append((Program(quick, *arguments), names, number))
            for child, names, number in children:  # each has its first ticks while others end
                with self.subTest(names=names, signal=number), child:
                    self.check_program(child, names, number)

    def check_program(self, child, names, number):
        with Stream(child.address) as stream:
            stream.until(lambda stream: names <= {data.get("name") for _, data, _ in stream.events})
            status, errors, seconds = child.end(number)
            self.assertEqual((status, errors), (0, ""))
            self.assertLess(seconds, 2)
            self.assertTrue(stream.ended_on_a_whole_event())

    def test_the_log_follower_in_the_readme_misses_no_error(self):
        """Not when a line comes in two parts, and not when the log is rotated."""
        log = Path(tempfile.mkdtemp()) / "a.log"
        self.addCleanup(shutil.rmtree, log.parent)
        log.write_text("ERROR long ago\n")
        *_, follower = readme_programs()
        follower = follower.replace("port=0", "port=0, interval=0.1")

        def write(text):
            with log.open("a") as file:
                file.write(text)

        def told(stream):
            return [data["message"] for kind, data, _ in stream.events if kind == "alert"]

        def another_tick(stream):
            count = len(stream.events)
            stream.until(lambda stream: len(stream.events) >= count + 4)  # a metric and a status

        with Program(follower, log) as child, Stream(child.address) as stream:
            write("INFO all is well\nERROR disk")
            another_tick(stream)
            write(" full\n")
            stream.until(lambda stream: told(stream) == ["ERROR disk full"])
            write("ERROR at the end of the old log\n")
            log.rename(log.with_suffix(".1"))
            another_tick(stream)
            write("ERROR in the next log\n")
            stream.until(lambda stream: len(told(stream)) == 3)
            self.assertEqual(
                told(stream)[1:], ["ERROR at the end of the old log", "ERROR in the next log"]
            )
            self.assertEqual(child.end()[:2], (0, ""))

    def test_the_consumers_in_the_readme_run(self):
        """The lines for a shell, Python and Node print what is streamed."""
        shell = re.search(r"    (curl -sN .*jq.*)", README)[1]
        [python] = [text for text in readme_blocks("python") if "urllib.request" in text]
        [node] = readme_blocks("javascript")
        self.setting(WATCH_SECONDS=0.05)
        server = self.serve()
        port = server.server_address[1]
        found = {name: shutil.which(name) for name in ("curl", "jq", "node")}
        consumers = [([sys.executable, "-u", "-c", python], b"1.0\n")]
        if found["curl"] and found["jq"]:
            consumers.append((["sh", "-c", shell], b"warning Look here"))
        if found["node"]:
            consumers.append((["node", "--input-type=module", "-e", node], b"cpu_usage"))
        for command, expected in consumers:
            with self.subTest(command=command[0]):
                command[-1] = re.sub(r"[\w.]+:8000", f"127.0.0.1:{port}", command[-1])
                with tempfile.TemporaryFile() as output:
                    process = subprocess.Popen(command, stdout=output, start_new_session=True)
                    try:
                        self.assertTrue(eventually(lambda: server.status()["connections"] == 1))
                        server.publish(metric("cpu_usage", 1.0), alert("warning", "Look here"))
                        self.assertTrue(
                            eventually(lambda: expected in os.pread(output.fileno(), 65536, 0))
                        )
                    finally:
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                    self.assertTrue(eventually(lambda: server.status()["connections"] == 0))

    def test_run_prints_the_url_and_ends_at_a_signal(self):
        """It says where the dashboard is once it can be reached. The program goes on behind it."""
        program = (
            "import sse_dashboard\nsse_dashboard.DashboardServer(port=0).run()\nprint('behind')\n"
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            with Program(program) as child, Stream(child.address) as stream:
                self.assertRegex(child.url, r"^The dashboard is at http://127\.0\.0\.1:\d+/ ")
                stream.until(lambda stream: stream.events)
                child.process.send_signal(number)
                output, errors = child.process.communicate(timeout=DEADLINE)
                self.assertEqual((child.process.returncode, output, errors), (0, "behind\n", ""))
                self.assertTrue(stream.ended_on_a_whole_event())

    def test_a_program_ends_in_order_as_the_first_process_of_a_container(self):
        """The kernel gives PID 1 no default for a signal: one without a handler is lost."""
        container = ["unshare", "--pid", "--fork", "--kill-child"]
        if not can_run([*container, "true"]):
            self.skipTest("needs the right to make a PID namespace: run as root")
        program = (
            "import os, sse_dashboard\n"
            "with sse_dashboard.DashboardServer(port=0) as server:\n"
            "    print(server.url, os.getpid(), flush=True)\n"
            "    server.wait()\n"
        )
        with Program(program, wrapped=container) as child:
            self.assertTrue(child.url.endswith("/ 1"), child.url)
            outside = Path(f"/proc/{child.process.pid}/task/{child.process.pid}/children")
            os.kill(int(outside.read_text()), signal.SIGTERM)
            _, errors = child.process.communicate(timeout=DEADLINE)
            self.assertEqual((child.process.returncode, errors), (0, ""))

    def test_a_program_keeps_its_handlers_of_signals(self):
        """The server takes the signals for as long as it serves, and none that the program handles.

        A signal ends the `with` block, wherever it stands, and the program goes on behind it.
        In another thread than the main one it takes none."""
        program = """
import signal, sys, threading, sse_dashboard
mine = lambda number, frame: print("mine", flush=True)
before = signal.getsignal(signal.SIGINT)
def serve():
    with sse_dashboard.DashboardServer(port=0):
        return signal.getsignal(signal.SIGTERM)
with sse_dashboard.DashboardServer(port=0) as server:
    print(server.url, flush=True)
    while True:
        threading.Event().wait(1)
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGINT) == before)
results = []
thread = threading.Thread(target=lambda: results.append(serve()))
thread.start()
thread.join()
signal.signal(signal.SIGTERM, mine)
print(results == [signal.SIG_DFL], serve() == mine, signal.getsignal(signal.SIGTERM) == mine)
"""
        with Program(program) as child:
            child.process.send_signal(signal.SIGTERM)
            output, errors = child.process.communicate(timeout=DEADLINE)
            self.assertEqual((output.split(), errors), (["True"] * 5, ""))

    def test_a_signal_waits_for_what_is_being_published(self):
        """The batch is whole, and no lock is left behind that the end would wait for."""
        program = """
import os, signal, sse_dashboard
class Signalling(sse_dashboard.Event):
    def encode(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().encode(*arguments)
with sse_dashboard.DashboardServer(port=0, sources=[], interval=60) as server:
    try:
        server.publish(Signalling("one", {}), sse_dashboard.Event("two", {}))
    finally:
        published = server.status()["events_published"]
print(published, "in order")
"""
        with Program(program) as child:
            self.assertEqual(child.url, "2 in order")
            self.assertEqual(child.process.communicate(timeout=DEADLINE), ("", ""))

    def test_a_program_does_not_wait_for_its_log(self):
        """Nobody reads its standard error: the ticks go on, and so does the end."""
        program = """
import sse_dashboard
class Failing:
    def events_at(self, tick):
        raise ValueError("x" * 30_000)
class Working:
    def events_at(self, tick):
        return [sse_dashboard.metric("own", 1)]
with sse_dashboard.DashboardServer(port=0, interval=0.05, sources=[Failing(), Working()]) as server:
    print(server.url, flush=True)
    server.wait()
"""
        with Program(program) as child, Stream(child.address) as stream:
            stream.until(lambda stream: len(ids(stream.events)) >= 10)
            child.process.send_signal(signal.SIGTERM)
            self.assertEqual(child.process.wait(DEADLINE), 0)

    def test_any_other_event_type_goes_to_the_stream_of_all(self):
        """A program's own event type is carried by `all` alone."""
        server = self.serve()
        everything = self.stream(server).opened()
        server.publish(Event("deploy", {"version": "1.2"}))
        events = everything.until(
            lambda stream: any(kind == "deploy" for kind, _, _ in stream.events)
        )
        self.assertEqual(events[-1][1]["version"], "1.2")


# --- Behind a proxy ------------------------------------------------------------------------------

SHIFTED = """
import sys, time
now = time.time
time.time = lambda: now() + {}
import sse_dashboard
sys.exit(sse_dashboard.main())
"""


def free_ports(count):
    """Ports that nobody listens on."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


README = (HERE / "README.md").read_text(encoding="utf-8")


def readme_blocks(language):
    """The blocks of code in README.md that are of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def readme_programs():
    """The programs in README.md that serve a dashboard, on a port of their own."""
    programs = [text for text in readme_blocks("python") if "DashboardServer(" in text]
    return [text.replace("DashboardServer(", "DashboardServer(port=0, ") for text in programs]


def accepts(port):
    """Whether somebody listens on this port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE):
        return True


def answers(port):
    """Whether a server behind this port answers a request."""
    try:
        return fetch(("127.0.0.1", port), "/", "HEAD")[0] == 200
    except OSError:
        return False


class Reconnecting(threading.Thread):
    """A client that comes back by its last event ID as soon as it is cut, until it is stopped."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.wires, self.last_id, self.cuts, self.leave = port, [], "", -1, False
        self.start()

    def run(self):
        while not self.leave:
            self.cuts += 1
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
            try:
                connection.request(
                    "GET",
                    "/api/events/all",
                    headers={"Last-Event-ID": self.last_id} if self.last_id else {},
                )
                self.read(connection.getresponse())
            except (OSError, http.client.HTTPException):
                pass  # cut, or no server took the request: once more
            finally:
                connection.close()

    def read(self, response):
        lines = []
        while response.status == 200 and not self.leave and (line := response.readline()):
            lines.append(line)
            if line == b"\n":
                wire, lines = b"".join(lines), []
                if found := re.search(rb"\nid: (.+)\n\n\Z", wire):
                    self.last_id = found[1].decode()
                    self.wires.append(wire)

    @property
    def tick(self):
        return int(self.last_id.partition("-")[0] or 0)


@unittest.skipIf(IN_SHORT, "SSE_TEST_BROWSER is 0")
class BehindAProxy(Promises):
    """The proxies' configurations are those of README.md, with other ports."""

    def setUp(self):
        super().setUp()
        self.ports = free_ports(3)
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def start(self, argv):
        process = subprocess.Popen(
            argv, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    def start_server(self, port, ahead=0):
        """One that is reached soon."""
        options = ["--port", str(port), "--interval", "0.1", "--history", "30"]
        return self.start([sys.executable, "-c", SHIFTED.format(ahead), *options])

    def reached(self, *ports):
        for port in ports:
            self.assertTrue(eventually(lambda port=port: answers(port), 2 * DEADLINE))

    def start_proxy(self, text, argv):
        self.assertLessEqual(text.count("\n"), 20)
        for documented, port in zip(("8080", "8001", "8002"), self.ports):
            text = text.replace(documented, str(port))
        file = self.folder / "configuration"
        file.write_text(text.replace("http {", f"http {{\n{self.own_folders()}"))
        self.start([part.replace("FILE", str(file)) for part in argv])

    def nginx(self):
        log = f"error_log stderr; pid {self.folder}/pid; daemon off;"
        return [NGINX, "-p", str(self.folder), "-e", "stderr", "-c", "FILE", "-g", log]

    @unittest.skipUnless(HAPROXY, NO_HAPROXY)
    def test_haproxy(self):
        """30 clients, and two servers whose clocks differ by a second, killed in turn.

        Each client gets every event once, and soon."""
        [text] = readme_blocks("haproxy")
        self.clients_survive(text, [HAPROXY, "-f", "FILE"])

    @unittest.skipUnless(NGINX, NO_NGINX)
    def test_nginx(self):
        """Behind nginx too, every client has every event once while servers are killed."""
        [text] = [text for text in readme_blocks("nginx") if "upstream" in text]
        self.clients_survive(text, self.nginx())

    def own_folders(self):
        """Where nginx writes, for a user who may not write into those of the system."""
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = [f"{kind}_temp_path {self.folder}/{kind};" for kind in kinds]
        return "\n".join(["access_log off;", *paths])

    @unittest.skipUnless(NGINX, NO_NGINX)
    @unittest.skipUnless(shutil.which("openssl"), "no TLS is tested: apt-get install openssl")
    @unittest.skipUnless(shutil.which("curl"), "no HTTP/2 is tested: apt-get install curl")
    def test_a_path_with_tls_a_password_and_http_2(self):
        """Under a path, over TLS and HTTP/2, who has the password gets the page and its stream."""
        [text] = [text for text in readme_blocks("nginx") if "location /dash/" in text]
        secret = subprocess.run(
            ["openssl", "passwd", "-apr1", "secret"], capture_output=True, text=True, check=True
        ).stdout
        (self.folder / "dashboard.htpasswd").write_text(f"me:{secret}")
        key, certificate = self.folder / "dashboard.key", self.folder / "dashboard.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
            + ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)],
            capture_output=True,
            check=True,
        )
        self.start_server(self.ports[1])
        self.reached(self.ports[1])
        text = text.replace("8443", "8080").replace("8000", "8001")
        # The workers of nginx may be another user, who reads the passwords.
        self.folder.chmod(0o755)
        self.start_proxy(text, self.nginx())
        self.assertTrue(eventually(lambda: accepts(self.ports[0])))
        url = f"https://localhost:{self.ports[0]}/dash"
        curl = ["curl", "--ipv4", "--http2", "--no-buffer", "--cacert", str(certificate)]

        def ask(*options):
            says = ["--silent", "--write-out", "%{http_version} %{http_code}"]
            command = [*curl, *says, *options]
            return subprocess.run(command, capture_output=True, timeout=DEADLINE).stdout

        self.assertTrue(ask(f"{url}/").endswith(b"2 401"))
        self.assertTrue(ask("-u", "me:secret", f"{url}/").endswith(b"</html>\n2 200"))
        # Without the slash: to the path with it.
        self.assertTrue(ask("-u", "me:secret", url).endswith(b"2 301"))
        # Eight streams at once over one connection: more than HTTP/1.1 has for a host.
        streams = [f"{url}/api/events/all?name=cpu_usage&stream={n}" for n in range(8)]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
            command = [*curl, "--verbose", "--parallel", "-u", "me:secret", *streams]
            process = subprocess.Popen(command, stdout=output, stderr=said)
            try:
                self.assertTrue(
                    eventually(lambda: os.pread(output.fileno(), 1 << 20, 0).count(b"status") > 24)
                )
            finally:
                process.kill()
                process.wait()
            talk = os.pread(said.fileno(), 1 << 20, 0)
        self.assertEqual(talk.count(b"Connected to localhost"), 1)
        self.assertEqual(talk.count(b"HTTP/2 200"), 8)

    def clients_survive(self, text, argv):
        self.needs_threads(200)
        servers = [self.start_server(self.ports[1]), self.start_server(self.ports[2], ahead=-1)]
        self.reached(*self.ports[1:])
        self.start_proxy(text, argv)
        self.reached(self.ports[0])
        clients = [Reconnecting(self.ports[0]) for _ in range(30)]

        def all_go_on():
            goal = max(client.tick for client in clients) + 300
            return eventually(lambda: all(client.tick >= goal for client in clients))

        self.assertTrue(all_go_on())
        self.nothing_is_held_back()
        for number, ahead in ((0, 0), (1, -1)):
            servers[number].send_signal(signal.SIGKILL)
            servers[number].wait()
            self.assertTrue(all_go_on())
            servers[number] = self.start_server(self.ports[1 + number], ahead)
            self.reached(self.ports[1 + number], self.ports[0])
            self.assertTrue(all_go_on())
        for client in clients:
            client.leave = True
        for client in clients:
            client.join(DEADLINE)
            self.assertEqual(b"".join(client.wires), self.never_cut(client))
        self.assertGreaterEqual(sum(client.cuts for client in clients), 30)

    def nothing_is_held_back(self):
        """A stream on which next to nothing happens is there from its first byte."""
        with (
            socket.create_connection(("127.0.0.1", self.ports[0]), DEADLINE) as quiet,
            quiet.makefile("rb") as stream,
        ):
            quiet.sendall(b"GET /api/events/alerts?level=error HTTP/1.1\r\nHost: localhost\r\n\r\n")
            self.assertTrue(any(line.startswith(b"retry: ") for line in stream))

    def never_cut(self, client):
        """The client's stream, first event to last, as the simulation alone would have it."""
        first, last = (
            tuple(map(int, re.search(rb"id: (\d+)-(\d+)", wire).groups()))
            for wire in client.wires[:: len(client.wires) - 1]
        )
        return b"".join(
            wire
            for tick in range(first[0], last[0] + 100, 100)
            for number, wire in self.wires_at(tick)
            if first <= (tick, number) <= last
        )

    @staticmethod
    @functools.cache
    def wires_at(tick):
        return [
            (number, event.encode(tick, f"{tick}-{number}"))
            for number, event in enumerate(Simulation(0, 0.1).events_at(tick), 1)
        ]


# --- The page, in a real browser -----------------------------------------------------------------

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1440,900",
)


class Browser:
    """Chromium with a profile of its own, driven by WebDriver, and by DevTools for the rest."""

    def __init__(self):
        self.profile = tempfile.mkdtemp()
        self.driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = next(line for line in self.driver.stdout if "successfully on port" in line)
        self.address, self.session = ("127.0.0.1", int(re.search(r"port (\d+)", line)[1])), ""
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={self.profile}"]}
        wanted = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
            "pageLoadStrategy": "none",
        }
        self.session = (
            "/session/"
            + self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        )

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(
                method, self.session + path, json.dumps(body or {}) if method == "POST" else None
            )
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise AssertionError(f"{path}: {value['message']}")
        return value

    def cdp(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def js(self, expression):
        """The value of an expression in the page."""
        result = self.cdp(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise AssertionError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def text(self, selector):
        return self.js(f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').trim()")

    def until(self, expression, seconds=DEADLINE):
        """Waits for an expression to be true; fails with what the page says instead."""

        def holds():
            with contextlib.suppress(AssertionError):  # between two documents
                return self.js(expression)

        if not eventually(holds, seconds):
            raise AssertionError(f"never {expression}; the page says {self.text('body')[:400]!r}")

    def state(self, *words, seconds=DEADLINE):
        """Waits until the connection indicator says one of the words."""
        self.until(
            f"{json.dumps(words)}.includes(document.querySelector('#state').innerText)", seconds
        )

    def key(self, key, code=0):
        for kind in ("rawKeyDown", "keyUp"):
            self.cdp(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def tab(self):
        """Opens a tab, goes on in it, and gives its handle."""
        handle = self.call("POST", "/window/new", {"type": "tab"})["handle"]
        self.switch(handle)
        return handle

    def switch(self, handle):
        self.call("POST", "/window", {"handle": handle})

    def complaints(self):
        """What the console holds, but for the browser's own lines about a request that failed."""
        lines = [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]
        return [
            line
            for line in lines
            if "Failed to load resource" not in line and "net::ERR_" not in line
        ]

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.call("DELETE", "")
        self.driver.terminate()
        self.driver.communicate()
        shutil.rmtree(self.profile, ignore_errors=True)


@functools.cache
def the_browser():
    """One for all tests: it takes a second to start."""
    browser = Browser()
    unittest.addModuleCleanup(browser.close)
    return browser


@functools.cache
def first_reading(interval, tick):
    """What the simulation says first at a tick, of the CPU. Many tests ask for the same."""
    return Simulation(0, interval / 1000).events_at(tick)[0].fields["value"]


@unittest.skipIf(IN_SHORT, "SSE_TEST_BROWSER is 0")
@unittest.skipUnless(CHROMIUM and DRIVER, NO_BROWSER)
class InABrowser(Promises):
    """What all tests of the page share. The server ticks four times a second, so that no test waits
    for it."""

    history = 60.0  # seconds that the server has to compute and the page to read in each test

    @classmethod
    def setUpClass(cls):
        cls.browser = the_browser()

    def setUp(self):
        super().setUp()
        self.setting(WATCH_SECONDS=0.05, LINGER_SECONDS=0.3)
        self.browser.complaints()
        self.browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=1440,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.browser.cdp("Emulation.setEmulatedMedia", features=[])

    def tearDown(self):
        self.assertEqual(self.browser.complaints(), [])
        first, *others = self.browser.call("GET", "/window/handles")
        for handle in others:
            self.browser.switch(handle)
            self.browser.call("DELETE", "/window")
        self.browser.switch(first)
        self.browser.call("POST", "/url", {"url": "about:blank"})
        super().tearDown()

    def live(self, port=0, sources=None, interval=0.25, **options):
        """A server whose time passes by itself, one tick every quarter of a second."""
        sources = [Simulation(interval=interval)] if sources is None else sources
        options = {"history": self.history} | options
        server = sse.DashboardServer(port=port, sources=sources, interval=interval, **options)
        server.__enter__()
        self.addCleanup(server.__exit__, None, None, None)
        return server

    def go(self, url, state="Live"):
        self.browser.js("window.left = true")  # the page before may be here for a while
        self.browser.call("POST", "/url", {"url": url})
        self.browser.until(
            "!window.left && document.readyState === 'complete' && location.protocol === 'http:'"
        )
        if state:
            self.browser.state(state)

    def before(self, *scripts):
        """Scripts that run before those of every page that is loaded from now on."""
        for source in scripts:
            added = self.browser.cdp("Page.addScriptToEvaluateOnNewDocument", source=source)
            self.addCleanup(self.browser.cdp, "Page.removeScriptToEvaluateOnNewDocument", **added)

    def hurried(self, server, *settings):
        """The server, with a page that has other settings than ours, to shorten a wait."""
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "index.html").write_text(page_with(*settings), "utf-8")
            server.page = sse.load_page(Path(folder, "index.html"))
        return server

    def puppet(self, *settings):
        puppet = Puppet(*settings)
        self.addCleanup(puppet.__exit__)
        return puppet

    def size(self, width, height=900, density=1):
        self.browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=density,
            mobile=width < 700,
        )
        self.browser.until(f"innerWidth === {width} && devicePixelRatio === {density}")

    def shown(self, selector):
        return self.browser.js(
            f"document.querySelector({json.dumps(selector)})?.checkVisibility() === true"
        )

    def points(self, name="cpu_usage"):
        """What the page holds of a metric: (time, value); None lifts the pen."""
        times, values = self.browser.js(
            f"(() => {{ const s = state.series.get('{name}') ?? {{times: [], values: []}};"
            "return [s.times, s.values.map(v => Number.isNaN(v) ? null : v)]; })()"
        )
        return list(zip(times, values))

    def check_against_simulation(self, interval=250):
        """The page's points are the simulation's: none missing, none twice, none changed."""
        points = self.points()
        self.assertGreater(len(points), 100)
        self.assertEqual(
            [time for time, _ in points],
            list(range(points[0][0], points[-1][0] + interval, interval)),
        )
        for tick, value in points:
            self.assertEqual(value, first_reading(interval, tick))


class ThePage(InABrowser):
    """What a person sees."""

    def test_the_first_paint_is_full(self):
        """Every card has its value, unit and chart with history; the alerts, uptime and connections
        are there."""
        server = self.live(history=300.0)
        self.go(server.url)
        self.browser.until("document.querySelectorAll('#cards canvas').length >= 6")
        words = self.browser.text("body")
        for word in (
            "CPU",
            "Memory",
            "Disk",
            "Network",
            "Temperature",
            "Load",
            "Alerts",
            "%",
            "°C",
            "B/s",
            "Uptime",
            "Open connections",
        ):
            self.assertIn(word, words)
        self.browser.until("document.querySelector('#connections').innerText === '1'")
        self.assertEqual(self.browser.js("document.querySelector('#state').role"), "status")
        uptime = self.browser.text("#uptime")
        self.assertRegex(uptime, r"\d")
        self.assertGreater(len(self.points()), 1000)
        self.check_against_simulation()
        inked = (
            "[...document.querySelectorAll('#cards canvas')].map(c => {"
            "const {data} = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
            "const columns = new Set(); for (let i = 0; i < data.length; i += 4)"
            "if (data[i + 3]) columns.add(Math.floor(i / 4) % c.width);"
            "return columns.size / c.width; })"
        )
        self.browser.until(f"{inked}.every(part => part > .5)")
        roles = self.browser.js(
            "[...document.querySelectorAll('[role=meter]')].map(e => [e.getAttribute('aria-label'),"
            "e.getAttribute('aria-valuenow') !== null && e.getAttribute('aria-valuetext') !== ''])"
        )
        gauges = [[panel.title, True] for panel in sse.PANELS if panel.gauge]
        self.assertEqual(sorted(roles), sorted(gauges))
        self.assertTrue(
            self.browser.js(
                "[...document.querySelectorAll('canvas')].every(c => c.getAttribute('aria-label'))"
            )
        )
        self.browser.until("document.querySelector('#icon').href.includes('svg')")
        self.browser.until(f"document.querySelector('#uptime').innerText > '{uptime}'")

    def test_the_values_shown_are_the_streams(self):
        """Whenever no frame is awaited, the number and the meter's text are the newest event's."""
        self.go(self.live().url)
        for _ in range(3):
            shown, now, name = self.browser.js(
                "new Promise(done => { const look = () => {"
                "if (frame) return requestAnimationFrame(() => setTimeout(look));"
                "const meter = document.querySelector('[role=meter][aria-label=CPU]');"
                "done([document.querySelector('[data-metric=cpu_usage]').innerText,"
                "state.series.get('cpu_usage').values.at(-1),"
                "meter.getAttribute('aria-valuetext')]);"
                "}; look(); })"
            )
            self.assertEqual(float(re.search(r"[\d.]+", shown)[0]), now)
            self.assertEqual(float(re.search(r"[\d.]+", name)[0]), now)
            newest = self.browser.js("state.newest")
            self.browser.until(f"state.newest > {newest}")

    def test_a_server_that_is_killed_and_comes_back(self):
        """It is said within a second, the values stay and are marked; on return nothing is missing
        and nothing twice."""
        with Command("--interval", "0.25") as command:
            self.go(command.url.partition(" at ")[2].split()[0])
            shown = self.browser.text("[data-metric=memory_usage]")
            command.process.kill()
            command.process.communicate()
            self.browser.state("Reconnecting", seconds=2.5)  # before it could be Delayed
            self.assertRegex(self.browser.text("[data-metric=memory_usage]"), r"\d")
            self.assertTrue(shown)
            self.assertEqual(
                self.browser.js(
                    "(look => [look('[data-metric=memory_usage] b').color, look('.value').stroke])"
                    "(part => getComputedStyle(document.querySelector(part)))"
                ),
                [self.browser.js("paint.quiet")] * 2,
            )
            self.browser.until(
                "/no data for [1-9]\\d* s/.test(document.querySelector('#detail').innerText)"
            )
            self.browser.until(
                "/next try in \\d+ s/.test(document.querySelector('#detail').innerText)"
                " && document.querySelector('#retry').checkVisibility()",
                20,
            )
            self.assertIn("no data", self.browser.js("document.title").lower())
            with Command("--interval", "0.25", port=command.address[1]):
                self.browser.js("document.querySelector('#retry').click()")
                self.browser.state("Live")
                self.browser.until("state.marks.some(mark => mark.label === 'restart')")
                self.check_against_simulation()
                self.assertEqual(self.browser.js("document.querySelector('#retry').hidden"), True)

    def test_it_comes_back_by_itself(self):
        """Without a hand, after the wait that it shows; the waits grow, up to half a minute, until
        the line has proven itself. No stream is open beside the last. On a phone nothing moves for
        what is said meanwhile, nor for a moment that is looked at."""
        server = self.live()
        self.go(server.url)
        self.size(390, 844)
        port = server.server_port
        self.browser.js(
            "window.sources = [source], window.EventSource = class extends EventSource {"
            "constructor(url) { super(url); sources.push(this); } },"
            "Math.random = () => .1, 0"  # so that no wait is long
        )
        server.__exit__(None, None, None)
        self.browser.state("Reconnecting")
        self.browser.js(
            "new Promise(done => requestAnimationFrame(() => setTimeout(() => {"
            "window.moved = []; new PerformanceObserver(list => { for (const shift of"
            " list.getEntries()) moved.push(...shift.sources.map(({node}) => node?.nodeName)); })"
            ".observe({type: 'layout-shift'}); done(); })))"
        )
        self.browser.until("wait >= 4000", 20)
        self.browser.js("look(state.newest - 60_000), 0")
        self.browser.until("document.querySelector('#live').checkVisibility() && !frame")
        self.assertNotIn("MAIN", self.browser.js("moved"))
        waits = (
            "[[0, 1000], [.5, 8000], [1, 30_000]].map(([chance, most]) => ("
            "Math.random = () => chance, wait = most, fail(), link.retryAt - steady()))"
        )
        for expected, found in zip((250, 4000, 30_000), self.browser.js(waits), strict=True):
            self.assertAlmostEqual(found, expected, delta=150)
        tries = "[wait = 20_000, retryNow(), wait, fail(), link.retryAt = 0, beat(), wait]"
        self.assertEqual(self.browser.js(tries)[2::4], [20_000, 30_000])
        self.browser.js("(Math.random = () => .1, wait = 2000, fail(), backToLive())")
        self.live(port)
        self.browser.state("Live")
        self.assertGreater(self.browser.js("(beat(), wait)"), 1000)
        self.check_against_simulation()
        self.assertEqual(
            self.browser.js("sources.filter(({readyState}) => readyState !== 2).length"), 1
        )
        self.assertRegex(self.browser.js("source.url"), r"\?lastEventId=\d+-\d+$")

    def test_a_full_house_is_waited_for(self):
        """503 is a fault like any other: the page says so, tries on with growing waits, and is live
        when there is a place."""
        server = self.live()
        self.go(server.url)
        self.browser.js("Math.random = () => .1, 0")  # so that no wait is long
        places, server.max_clients = server.max_clients, 0
        for connection in list(server.deadlines):
            sse.hang_up(connection)
        self.assertTrue(  # before a stream could be called silent
            eventually(lambda: server.status()["ended"]["refused"] >= 3, 5)
        )
        self.browser.state("Reconnecting")
        server.max_clients = places
        self.browser.state("Live")
        self.check_against_simulation()

    def test_offline_and_back(self):
        """When the browser has no network the page says so; when it is back, it is live at once."""
        server = self.live()
        self.go(server.url)
        online = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.browser.js("Math.random = () => 1, wait = 30_000")  # else it could be back by itself
        self.browser.cdp("Network.enable")
        self.addCleanup(self.browser.cdp, "Network.emulateNetworkConditions", **online)
        self.browser.cdp(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        self.browser.state("Offline")
        self.browser.cdp("Network.emulateNetworkConditions", **online)
        self.browser.state("Live")
        self.check_against_simulation()

    def test_what_the_server_no_longer_holds_is_said(self):
        """After `reset` the page says what is gone, and the chart keeps the break."""
        server = self.live(history=2.0)
        self.go(server.url)
        port = server.server_port
        server.__exit__(None, None, None)
        self.browser.state("Reconnecting")
        self.browser.until("steady() - link.heardAt > 2000", 20)
        self.live(port, history=1.0)
        self.browser.js("retryNow(), 0")
        self.browser.state("Live")
        self.browser.until("/gone/.test(document.querySelector('#notice').innerText)")
        self.assertIn(None, [value for _, value in self.points()])

    def test_eight_tabs_share_one_stream(self):
        """All are live over one connection; when the holder closes, another goes on, and no tab
        misses or doubles anything."""
        server = self.live()
        holder = self.browser.call("GET", "/window")
        self.go(server.url)
        handles = []
        for _ in range(7):
            handles.append(self.browser.tab())
            self.go(server.url)
        self.assertTrue(
            eventually(lambda: server.broadcaster.snapshot()["connections"] == 1),
            server.broadcaster.snapshot()["connections"],
        )
        holding = []
        for handle in [*handles, holder]:
            self.browser.switch(handle)
            self.assertEqual(self.browser.text("#state"), "Live")
            holding.append(self.browser.js("holding"))
        self.assertEqual(holding, [False] * 7 + [True])
        self.assertEqual(
            server.status()["ended"]["closed"], 0
        )  # nobody gave up a stream of its own
        self.browser.call("DELETE", "/window")
        self.assertTrue(eventually(lambda: server.broadcaster.snapshot()["connections"] == 1))
        self.browser.switch(handles[0])
        newest = self.browser.js("state.newest")
        for handle in handles:
            self.browser.switch(handle)
            self.browser.until(f"state.newest > {newest} + 500")
            self.check_against_simulation()
        self.assertTrue(
            eventually(lambda: server.broadcaster.snapshot()["connections"] == 1),
            server.broadcaster.snapshot()["connections"],
        )

    def test_without_locks_each_tab_has_its_own_stream(self):
        """Where Web Locks are missing, every tab is live all the same. Hidden for ten seconds it
        lets go of its stream, and takes it up where it was when it is shown."""
        server = self.live()
        self.before(
            "delete Navigator.prototype.locks;"
            "setTimeout = (real => (task, ms) =>"
            "real(task, ms === 10_000 ? (window.patient = true, 300) : ms))(setTimeout);"
        )
        self.go(server.url)
        self.assertFalse(self.browser.js("'locks' in navigator"))
        self.assertTrue(self.browser.js("bus === null && holding"))

        def look_away():
            self.browser.call("POST", "/window/minimize")
            self.browser.until("document.hidden")

        def look_again():
            self.browser.call("POST", "/window/rect", {"width": 1440, "height": 900})
            self.browser.until("!document.hidden")

        def streams():
            status = server.status()
            return status["connections"], status["ended"]["closed"]

        look_away()
        self.assertTrue(eventually(lambda: streams() == (0, 1)), streams())
        self.assertTrue(self.browser.js("patient"))
        look_again()
        self.assertTrue(eventually(lambda: streams() == (1, 1)), streams())
        look_away()
        look_again()
        newest = self.browser.js("state.newest")
        self.browser.until(f"state.newest > {newest} + 500")  # and it keeps its stream
        self.browser.state("Live")
        self.check_against_simulation()

    def test_a_browser_that_forbids_storage(self):
        """It forbids channels and locks with it, and raises; the page is live all the same."""
        for forbidden in (
            "BroadcastChannel = class { constructor() { throw new DOMException(); } }",
            "navigator.locks.request = async () => { throw new DOMException(); }",
        ):
            storage = "Object.defineProperty(window, 'localStorage', {get() { throw 1; }})"
            script = self.browser.cdp(
                "Page.addScriptToEvaluateOnNewDocument", source=f"{forbidden};{storage}"
            )
            self.go(self.live().url)
            self.assertTrue(self.browser.js("bus === null && holding"))
            self.browser.cdp("Page.removeScriptToEvaluateOnNewDocument", **script)

    def test_a_hidden_tab_draws_nothing(self):
        """While nobody can see it, its document does not change; shown, it is current at once."""
        server = self.live()
        self.go(server.url)
        self.browser.js(
            "window.changes = 0, new MutationObserver(all => { window.changes += all.length; })"
            ".observe(document.body, {subtree: true, childList: true, characterData: true,"
            "attributes: true}),"
            "document.addEventListener('visibilitychange', () => { window.asked = frame; }), 0"
        )
        self.browser.until("zoned !== null")
        self.browser.call("POST", "/window/minimize")
        self.browser.until("document.hidden")
        server.publish(alert("error", "the tab says so"))
        newest = self.browser.js(
            "(cancelAnimationFrame(frame), frame = 0, window.changes = 0, window.mine = source,"
            "zoned = null, $('icon').href = 'data:,', state.newest)"  # as if it never was seen
        )
        self.browser.until(f"state.newest > {newest} + 1500")
        self.assertEqual(self.browser.js("[window.changes, frame]"), [0, 0])
        self.assertNotEqual(self.browser.js("document.title"), "SSE dashboard")
        self.assertIn("svg", self.browser.js("document.querySelector('#icon').href"))
        self.browser.call("POST", "/window/rect", {"width": 1440, "height": 900})
        self.browser.until("!document.hidden && window.changes > 0")
        self.assertGreater(self.browser.js("asked"), 0)  # at once, and not at the next event
        self.assertTrue(self.browser.js("source === mine"))
        self.check_against_simulation()

    def test_markup_in_an_alert_is_text(self):
        """Whatever a message holds, it is shown as it is and does nothing."""
        server = self.live()
        self.go(server.url)
        evil = "<img src=x onerror=\"document.title='hacked'\"><b>bold</b>"
        server.publish(alert("error", evil))
        self.browser.until("document.querySelector('#rows').innerText.includes('<b>bold</b>')")
        self.assertEqual(self.browser.js("document.querySelectorAll('#rows img').length"), 0)
        self.assertIn("Error", self.browser.text("#rows li"))

    def test_a_metric_nobody_has_heard_of(self):
        """It gets its card, number, unit and chart from its events; the malformed is left out."""
        server = self.live()
        self.go(server.url)
        for value in ("12", None, 1e999):
            with contextlib.suppress(ValueError):
                server.publish(Event("metric", {"name": "bad_metric", "value": value}))
        server.publish(Event("metric", {}))
        server.publish(Event("alert", {"level": 7}))
        server.publish(metric("years_to_go", 1234.5, "rpm"))
        self.browser.until("document.querySelector('[data-metric=years_to_go]') !== null")
        self.assertRegex(self.browser.text("[data-metric=years_to_go]"), r"1.?234[.,]5\s*rpm")
        self.assertIn("Years to go", self.browser.text("#cards"))
        self.assertEqual(
            self.browser.js("document.querySelectorAll('[data-metric=bad_metric]').length"), 0
        )
        newest = self.browser.js("state.newest")
        self.browser.until(f"state.newest > {newest}")

    def test_it_fits_every_width(self):
        """From 320 to 2560 px nothing scrolls sideways, and at 1440x900 all charts are visible."""
        self.go(self.live().url)
        for width in (320, 360, 768, 1440, 2560):
            self.browser.cdp(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=width < 700,
            )
            self.browser.until(
                f"innerWidth === {width} && document.scrollingElement.scrollWidth <= {width}"
            )
            if width == 1440:
                self.assertTrue(
                    self.browser.js(
                        "[...document.querySelectorAll("
                        "'canvas, #state, [role=meter], #rows li:first-child')]"
                        ".map(element => element.getBoundingClientRect())"
                        ".every(({bottom, height}) => bottom <= innerHeight && height > 0)"
                    ),
                    f"{len(sse.PANELS)} cards are too many for 1440x900",
                )

    def test_both_themes_and_the_switch(self):
        """It follows the system, colours of the canvas included; the switch is remembered."""
        self.go(self.live().url)
        ink = "getComputedStyle(document.body).backgroundColor"
        seen = set()
        for scheme in ("light", "dark"):
            self.browser.cdp(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            self.browser.until(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
            seen.add(
                (
                    self.browser.js(ink),
                    self.browser.js("new Promise(d => requestAnimationFrame(() => d(paint.ink)))"),
                )
            )
        self.assertEqual(len({background for background, _ in seen}), 2)
        self.assertEqual(len({colour for _, colour in seen}), 2)
        self.browser.cdp("Emulation.setEmulatedMedia", features=[])
        while self.browser.js("document.documentElement.dataset.theme") != "dark":
            self.browser.js("document.querySelector('#theme').click()")
        dark = self.browser.js(ink)
        self.browser.call("POST", "/refresh")
        self.browser.until(
            "document.readyState === 'complete'"
            " && document.documentElement.dataset.theme === 'dark'"
        )
        self.assertEqual(self.browser.js(ink), dark)
        self.browser.js("localStorage.clear()")

    def test_nothing_moves_when_motion_is_not_wanted(self):
        """No animation, no transition, under prefers-reduced-motion, nor on what a tick changes."""
        self.go(self.live().url)
        for value in ("reduce", "no-preference"):
            self.browser.cdp(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-reduced-motion", "value": value}],
            )
            newest = self.browser.js("state.newest")
            self.browser.until(f"state.newest > {newest} + 500")
            self.assertEqual(self.browser.js("document.getAnimations().length"), 0)

    def test_one_frame_however_many_events(self):
        """Twenty ticks a second, and no more than one drawing in an animation frame."""
        server = self.live(interval=0.05, history=20.0)
        self.go(server.url)
        self.browser.until("Date.now() - state.newest < 1000")
        drawn, frames = self.browser.js(
            "new Promise(done => { let drawn = 0, frames = 0;"
            "const drawing = render, end = state.newest + 1500;"
            "render = () => { drawn++; drawing(); };"
            "const look = () => { frames++;"
            "if (state.newest < end) return requestAnimationFrame(look);"
            "render = drawing; done([drawn, frames]); }; look(); })"
        )
        self.assertGreater(drawn, 5)
        self.assertLessEqual(drawn, frames)
        self.check_against_simulation(interval=50)


class Drawn:
    """A source whose events depend on the tick alone, so that its history is there at the start."""

    replayable = True

    def __init__(self, act, panels=()):
        self.events_at, self.panels = act, panels


ODD = (
    ("wifi_signal", "dBm", lambda i: -59 + i % 7),
    ("profit", "€", lambda i: round((i % 80 - 40) / 3, 2)),
    ("learning_rate", "", lambda i: 1e-4),
    ("tiny", "", lambda i: 3.2e-5 + i % 9 * 1e-7),
    ("bytes_received_since_this_machine_was_last_started", "B", lambda i: 66_436_489_637 + i),
    ("queue depth", "messages waiting in the queue per minute", lambda i: 9000 - i % 5),
    ("mains.frequency", "Hz", lambda i: 50 + i % 11 / 1000),
    ("p99", "s", lambda i: 0.0123 * (1 + i % 3)),
    ("http.server.request.duration.seconds.bucket", "ms", lambda i: 1234.5678 + i % 13 / 7),
    ("درجة_الحرارة", "°م", lambda i: -21.5),
    ("温度", "摄氏度", lambda i: i % 40),
    ("<b>", "<i>", lambda i: i % 2),
    ("huge", "", lambda i: 1.5e300),
    ("both_signs", "", lambda i: 1e12 * (i % 21 - 10)),
    ("zero", "V", lambda i: 0),
    ("battery", "%", lambda i: 97 + i % 3),
    ("x" * 80, "y" * 60, lambda i: -123456.789),
)


def odd_metrics(tick):
    """40 metrics with names, units and sizes that nobody has thought of."""
    i = tick // 1000
    yield from (metric(name, value(i), unit) for name, unit, value in ODD)
    for number in range(len(ODD), 40):
        value = round(10 ** (number % 8) * (1 + i % (3 + number) / 9), number % 4)
        unit = ("req/s", "B/s", "%", "", "°C")[number % 5 if number < 30 else 0]
        yield metric(f"worker_{number}_rate", value, unit)


# Every text that is seen, with its box on the page: the document's, and by a hook the canvases'.
TEXTS = """(() => {
  const texts = [], seen = element => element.checkVisibility({visibilityProperty: true});
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walk.nextNode();) {
    const parent = node.parentElement;
    if (!node.data.trim() || !seen(parent)) continue;
    if (parent.closest("script, .spoken, #log, #raw, noscript")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const {left, top, right, bottom} of range.getClientRects()) {
      texts.push({string: node.data, left, top, right, bottom, card: parent.closest(".card")});
    }
  }
  for (const canvas of document.querySelectorAll("canvas")) {
    const {left: x, top: y, width, height} = canvas.getBoundingClientRect();
    for (const {string, left, top, right, bottom} of canvas.texts ?? []) {
      texts.push({
        string, left: x + left, top: y + top, right: x + right, bottom: y + bottom, card: canvas,
      });
    }
  }
  const wrong = texts.filter(({left, right, top, bottom, card}) => {
    const box = card?.getBoundingClientRect() ?? {left: 0, right: innerWidth, top: 0, bottom: 1e9};
    return left < box.left - 1 || right > box.right + 1
      || top < box.top - 1 || bottom > box.bottom + 1;
  }).map(({string}) => `out of its box: ${string}`);
  texts.sort((a, b) => a.top - b.top);
  texts.forEach((a, i) => {
    for (let k = i + 1; k < texts.length && texts[k].top < a.bottom - 1.5; k++) {
      const b = texts[k];
      const apart = a.left >= b.right - 1.5 || b.left >= a.right - 1.5;
      if (!apart) wrong.push(`${a.string} over ${b.string}`);
    }
  });
  return [texts.length, wrong];
})()"""

# Notes what each canvas says and where, as the browser measures it.
HOOK = """(() => {
  const proto = CanvasRenderingContext2D.prototype, {fillText, clearRect} = proto;
  proto.clearRect = function (...box) { this.canvas.texts = []; clearRect.apply(this, box); };
  proto.fillText = function (string, x, y, most) {
    const m = this.measureText(string);
    (this.canvas.texts ??= []).push({
      string: most < m.width ? `squeezed: ${string}` : string, direction: this.direction,
      left: x - m.actualBoundingBoxLeft, right: x + m.actualBoundingBoxRight,
      top: y - m.actualBoundingBoxAscent, bottom: y + m.actualBoundingBoxDescent,
    });
    fillText.call(this, string, x, y);
  };
})()"""

# How many pixels of a card's canvas, or of a part of it, have just the colour of a name. It reads
# a copy: Chromium complains of a canvas that is read often.
PIXELS = """(({canvas}, name, x = 0, y = 0, width = canvas.width, height = canvas.height) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const {data} = copy.getImageData(x, y, width, height), [r, g, b] = paint[name].match(/\\d+/g);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) {
    count += data[i] == r && data[i + 1] == g && data[i + 2] == b;
  }
  return count;
})"""

# Whether anything is drawn at a point of it.
DRAWN = """(({canvas, ratio}, x, y) => {
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(canvas, -Math.round(x * ratio), -Math.round(y * ratio));
  return copy.getImageData(0, 0, 1, 1).data[3] > 0;
})"""


class TheCards(InABrowser):
    """Any metric: its card, its number, its scale and its line; and trouble, which is seen."""

    history = 300.0

    def test_scales_grow_at_once_and_shrink_slowly(self):
        """Steps of 1, 2 and 5 hold what is shown, from zero where it is near; slow to shrink."""
        self.go(self.live().url)
        for low, high, options, bottom, top in (
            (0, 0, {}, 0, 1),
            (0.1, 0.9, {}, 0, 1),
            (2, 61, {}, 0, 80),
            (5, 1234, {}, 0, 1500),
            (0, 4.1e6, {}, 0, 6e6),
            (-59, -41, {}, -60, -40),
            (-59, -59, {}, -60, 0),
            (-3, 7, {}, -5, 10),
            (49.98, 50.02, {}, 49.98, 50.02),
            (52, 61, {}, 50, 65),
            (52, 61, {"zero": True}, 0, 80),
            (52, 61, {"min": 0, "max": 100}, 0, 100),
            (52, 161, {"min": 0, "max": 100}, 0, 200),
            (-7, 61, {"min": 0}, -20, 80),
            (1, 1, {"whole": True}, 0, 1),
            (1e-5, 3.2e-5, {}, 0, 4e-5),
            (-1e300, 1e300, {}, -1e300, 1e300),
        ):
            with self.subTest(low=low, high=high, **options):
                found = self.browser.js(f"scaleFor({low}, {high}, {json.dumps(options)})")
                self.assertIn(round(float(f"{found['step']:e}".split("e")[0]), 6), (1, 2, 5))
                for expected, end in ((bottom, "from"), (top, "to")):
                    self.assertAlmostEqual(found[end], expected, delta=1e-9 * abs(high - low))
        with Puppet() as server:
            self.go(f"{server.url}#window=60", state="")
            server.opened()
            now = 1_800_000_000_000

            def top(after, value):
                server.say("metric", now + after, 1, name="load", value=value, unit="")
                server.status(now + after)
                self.browser.until(f"state.newest === {now + after} && !frame")
                return self.browser.js("cards[0].scale.to")

            self.assertEqual([top(0, 1), top(500, 1000), top(59_000, 1)], [1, 1000, 1000])
            self.assertEqual(top(90_000, 1), 1000)  # which is out of sight
            self.browser.js(f"hoverAt({now + 90_000})")
            self.assertEqual(top(150_000, 1), 1000)  # under a pointer it stands still
            self.browser.js("hoverAt(null)")
            self.browser.until("cards[0].scale.to === 1")

    def test_at_most_two_points_a_pixel_column(self):
        """A chart draws the lowest and the highest of each column, and keeps gaps."""
        self.go(self.live().url)
        found = self.browser.js(
            "(() => { const times = [], values = []; for (let i = 0; i < 6000; i++) {"
            "times.push(i * 50); values.push(i === 3000 ? NaN : Math.sin(i) * 10); }"
            "const {points, low, high} = thin({times, values}, 0, 3e5, 1000);"
            "const drawn = points.filter((value, i) => i % 2 && !Number.isNaN(value));"
            "return {n: points.length / 2, low, high, gaps: points.filter(Number.isNaN).length,"
            "drawn: [Math.min(...drawn), Math.max(...drawn)]}; })()"
        )
        self.assertLessEqual(found["n"], 602)
        self.assertEqual(found["gaps"], 1)
        self.assertGreater(found["high"], 9.99)
        self.assertLess(found["low"], -9.99)
        self.assertEqual(found["drawn"], [found["low"], found["high"]])
        within = "thin({times: [0, 1, 2, 3], values: [99, 1, 2, -99]}, .5, 2.5, 1, true)"
        self.assertEqual(self.browser.js(f"(({{low, high}}) => [low, high])({within})"), [1, 2])

    def nothing_overlaps(self, least):
        """Once all charts are drawn in their size: no text lies over another or leaves its box."""
        self.browser.until(
            "!frame && cards.every(({canvas, ratio}) => ratio === devicePixelRatio"
            " && Math.abs(canvas.width / ratio - canvas.clientWidth) <= 1"
            " && Math.abs(canvas.height / ratio - canvas.clientHeight) <= 1)"
        )
        count, wrong = self.browser.js(TEXTS)
        self.assertGreater(count, least)
        self.assertEqual(wrong, [])
        self.assertEqual(
            self.browser.js("document.scrollingElement.scrollWidth > innerWidth"), False
        )

    def test_40_metrics_at_every_width(self):
        """Whatever names, units and sizes, live or not: no text over another or out of its box."""
        self.before(HOOK)
        lines = {f"worker_{number}_rate": f"worker {number}" for number in range(30, 40)}
        lines["worker_39_rate"] = "the worker " + "of a long name " * 5
        panel = sse.Panel("Ten lines", lines, thresholds={"warning": 1, "error": 1.1})
        server = self.live(sources=[Drawn(odd_metrics, [panel])], interval=1.0)
        self.go(server.url)
        self.browser.until("cards.length === 31 && cards.every(card => card.drawn)")
        lowest = self.browser.js("Object.fromEntries(cards.map(c => [c.names[0], c.scale.from]))")
        for name in ("battery", "queue depth", ODD[4][0]):  # per cent, counts and bytes
            self.assertEqual(lowest[name], 0)
        self.assertGreater(lowest["mains.frequency"], 49)
        for width in (320, 390, 768, 1440, 2560):
            with self.subTest(width=width):
                self.size(width)
                self.nothing_overlaps(350)
                missing, wide = self.browser.js(
                    "[cards.flatMap(({room, written}) => room.axisLabels.steps.filter(step =>"
                    " !written.some(({string}) => string === step.string))),"
                    "cards.filter(({width, room}) => room.left + room.right > width / 2).length]"
                )
                self.assertEqual((missing, wide), ([], 0))  # each has its room, and so has the plot
        server.__exit__(None, None, None)
        self.size(390)
        self.browser.until(
            "document.querySelector('canvas').texts?.[0].string.startsWith('no data')"
        )
        self.nothing_overlaps(350)
        self.browser.js("look(state.newest - 60_000)")
        self.browser.until("cards.every(({readout}) => readout)")
        self.assertTrue(
            self.browser.js(
                "cards.every(({readout, width}) => readout.left >= 0 && readout.right <= width)"
            )
        )

    def test_a_narrow_screen(self):
        """A bar is not wider than its card; nothing stands alone in a row, neither the button for
        the theme nor the unit at a message's end; the levels' words are whole."""
        panel = sse.Panel("Bar", {"value": ""}, "bar", 0, 100, thresholds={"warning": 10})
        server = self.live(sources=[Drawn(lambda tick: [metric("value", 12.34, "%")], [panel])])
        server.publish(alert("success", "Memory usage back to normal: 81.6 %"))
        self.go(server.url)
        for width in range(360, 440, 9):
            self.size(width)
            with self.subTest(width=width):
                self.browser.until(
                    "(() => { const box = name => document.querySelector(name)"
                    ".getBoundingClientRect();"
                    "const lines = new Range();"
                    "lines.selectNodeContents(document.querySelector('#rows p'));"
                    "return box('.bar').right <= box('.plot').right"
                    " && Math.abs(box('#theme').top - box('#wider').top) < 2"
                    " && ([...lines.getClientRects()].at(-1).width > 30"
                    " || !CSS.supports('text-wrap', 'pretty')); })()"
                )
                # The way to the alerts stays where it is without trouble.
                self.browser.until(
                    "(([name, way, trouble]) =>"
                    " Math.abs(name.top - way.top) < 9 && trouble.top > way.top)"
                    "(['title', 'reach', 'trouble'].map(id => $(id).getBoundingClientRect()))"
                )
        self.size(296)
        whole = "({scrollWidth, clientWidth}) => scrollWidth <= clientWidth"
        self.browser.until(f"[...document.querySelectorAll('#filter span')].every({whole})")

    def test_the_grid_has_no_hole(self):
        """However many cards there are, up to eight, they fill the grid, at every width."""
        server = self.live(sources=[])
        self.go(server.url)
        self.browser.until(
            "(() => { const words = new Range(); words.selectNodeContents($('waiting'));"
            "const [here, there] = [words, $('waiting').parentElement]"
            ".map(part => part.getBoundingClientRect()).map(({y, height}) => y + height / 2);"
            "return Math.abs(here - there) < 2; })()"
        )
        for count in range(1, 9):
            server.publish(sse.metric(f"metric {count}", count))
            self.browser.until(f"cards.length === {count}")
            for width, height in ((390, 844), (768, 1024), (1440, 900), (2560, 1440)):
                self.size(width, height)
                with self.subTest(count=count, width=width):
                    self.browser.until(
                        "(() => { const area = ({width, height}) => (width + 12) * (height + 12);"
                        "const box = element => element.getBoundingClientRect();"
                        "const whole = area(box($('cards').parentElement));"
                        "const filled = [...$('cards').children].map(box).map(area);"
                        "return Math.abs(filled.reduce((a, b) => a + b) / whole - 1) < .001; })()"
                    )

    def test_large_text_and_text_from_right_to_left(self):
        """Text of twice the size at 390 px, and from right to left: nothing is cut or overlaps."""
        self.before(HOOK)
        self.go(self.live().url)
        self.size(390, 844)
        self.browser.js("document.documentElement.style.fontSize = '32px'")
        self.browser.until("cards[0]?.em === 24")
        self.nothing_overlaps(60)
        self.browser.js("document.documentElement.style.fontSize = ''")
        self.browser.js("document.documentElement.dir = 'rtl'")
        self.size(1440)
        self.browser.until("cards[0]?.em === 12")
        self.nothing_overlaps(60)
        self.assertEqual(  # a minus stays in front of its number
            self.browser.js(
                "[...cards.flatMap(({canvas}) => canvas.texts),"
                "...[...document.querySelectorAll('.number b')].map(getComputedStyle)]"
                ".filter(({direction}) => direction !== 'ltr').length"
            ),
            0,
        )
        self.assertLess(
            self.browser.js("document.querySelector('#theme').getBoundingClientRect().left"), 100
        )

    def test_numbers_of_any_metric(self):
        """Whole numbers stay whole, others get the digits that matter, in any locale."""
        server = self.live(sources=[])
        self.go(server.url, state=None)
        for value, form, expected in (
            (5, {"digits": 0}, "5"),
            (45.2, {"unit": "%", "digits": 1, "step": 50}, "45.2 %"),
            (45, {"unit": "%", "digits": 1, "step": 50}, "45.0 %"),
            (12345, {"digits": 0}, "12,345"),
            (66436489637, {"digits": 0}, "66.4 G"),
            (66436489637, {"unit": "B", "digits": 0, "step": 2e10}, "66.4 GB"),
            (1200, {"unit": "B/s", "digits": 0}, "1.20 kB/s"),
            (999.7, {"unit": "B/s", "digits": 1}, "1.00 kB/s"),
            (0.0123, {"unit": "s", "digits": 4}, "12.3 ms"),
            (3.2e-5, {"unit": "s", "digits": 6}, "32 µs"),
            (3.2e-5, {"digits": 6}, "3.2E-5"),
            (5.55e-17, {"unit": "V"}, "5.55E-17 V"),  # what is left of a sum that should be zero
            (1e-300, {"unit": "m"}, "1E-300 m"),
            (0.0001, {"digits": 4}, "0.0001"),
            (1234.5, {"unit": "rpm", "digits": 1}, "1,234.5 rpm"),
            (50.0123, {"unit": "Hz", "digits": 4, "step": 0.01}, "50.012 Hz"),
            (0.1 + 0.2, {"digits": 17}, "0.300"),
            (-59, {"unit": "dBm", "digits": 0}, "-59 dBm"),
            (-0.001, {"digits": 3, "decimals": 1}, "0.0"),
            (2e6, {"unit": "requests", "digits": 0}, "2.00 M requests"),
            (1.5e300, {"digits": 0}, "1.5E300"),
            (1499, {"unit": "W", "decimals": 0}, "1.50 kW"),
            (50, {"unit": "W", "decimals": 0}, "50 W"),
            (1_499_082, {"unit": "B/s", "decimals": 0}, "1.50 MB/s"),
            (45.678, {"unit": "%", "decimals": 2}, "45.68 %"),
            (0.0123, {"unit": "s", "decimals": 1}, "12.3 ms"),
        ):
            with self.subTest(value=value, **form):
                self.assertEqual(
                    self.browser.js(f"inWords({value!r}, {json.dumps(form)})"), expected
                )
        for value, expected in ((1e30, "1E30"), (2.5e-6, "2.5E-6"), (1234.5, "1,234.5")):
            self.assertEqual(self.browser.js(f"plainNumber({value!r})"), expected)
        for value, digits in ((5, 0), (45.2, 1), (3.2e-5, 6), (1e21, 0), (-0.25, 2)):
            self.assertEqual(self.browser.js(f"digitsOf({value!r})"), digits)
        self.addCleanup(self.browser.cdp, "Emulation.setLocaleOverride")
        self.browser.cdp("Emulation.setLocaleOverride", locale="de-DE")
        self.go(server.url, state=None)
        words = self.browser.js("inWords(1234.5, {unit: 'rpm', digits: 1})")
        self.assertEqual(words, "1.234,5 rpm")

    def test_cards_come_and_go_with_the_data(self):
        """In the panels' order, then the unknown; what stopped says its age; what is old goes."""
        source = Counting(act=lambda tick: [])
        source.panels = [
            sse.Panel("Second", {"b": "left", "c": "right"}),
            sse.Panel("Never", {"d": ""}),
            sse.Panel("First", {"a": ""}, decimals=3),
        ]
        server = self.serve(ticks=0, sources=[source], title="Mine")
        server.now = time.time_ns() // 1_000_000_000 * 1000 - 20_000
        for _ in range(5):
            server.tick([])
        self.go(server.url, state=None)
        self.browser.until("document.querySelector('#waiting').innerText !== ''")
        self.assertEqual(self.browser.js("document.querySelectorAll('.card').length"), 0)
        self.browser.until("document.title === 'Mine'")
        titles = "[...document.querySelectorAll('.card h3')].map(e => e.innerText).join()"
        for name, expected in (
            ("own", "Own"),
            ("a", "First,Own"),
            ("c", "Second,First,Own"),
        ):
            server.tick([metric(name, 1.5)])
            self.browser.until(f"{titles} === '{expected}'")
        self.assertEqual(self.browser.text("[data-metric=a]"), "1.500")
        self.assertEqual(self.browser.text("[data-metric=b]"), "–")  # which is no zero
        self.assertFalse(self.shown("#trouble"))
        self.assertTrue(self.browser.js("document.querySelector('#waiting').hidden"))
        self.assertEqual(self.browser.text("h1"), "Mine")
        for _ in range(5):
            server.tick([metric("a", 2), metric("own", 3)])
        for _ in range(6):
            server.tick([metric("a", 2)])
        self.browser.until("document.querySelector('[data-metric=own]').closest('.old') !== null")
        self.assertIn("6 s ago", self.browser.text("#cards"))
        self.assertIsNone(
            self.browser.js("document.querySelector('[data-metric=a]').closest('.old')")
        )
        server.now += 300_000
        server.tick([metric("a", 2)])
        self.browser.until(f"{titles} === 'First'")
        self.assertEqual(self.browser.js("cards.length + state.series.size"), 2)

    def test_lines_break_where_something_is_missing(self):
        """A metric that comes when it likes is one line; one of every tick breaks after three."""
        tick = time.time_ns() // 1_000_000_000 * 1000

        def act(at):
            age = (tick - at) // 1000
            if at % 7000 == 0:
                yield metric("loss", 0.5)
            if not 20 <= age < 22:
                yield metric("two_missing", 1)
            if not 20 <= age < 23:
                yield metric("three_missing", 1)
            if age == 10:
                yield metric("once", 7)

        self.go(self.live(sources=[Drawn(act)], interval=1.0).url)
        self.browser.until("cards.length === 4")
        for name, breaks in (("loss", 0), ("two_missing", 0), ("three_missing", 1)):
            values = [value for _, value in self.points(name)]
            self.assertGreater(len(values), 40)
            self.assertEqual(values.count(None), breaks, name)
        inked = (
            "(c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "let n = 0; for (let i = 0; i < d.length; i += 4)"
            "if (d[i + 3] > 200 && d[i + 2] - d[i] > 100) n++; return n; })(document"
            ".querySelector('[data-metric=once]').closest('.card').querySelector('canvas'))"
        )
        self.browser.until(f"{inked} > 10")

    def trouble(self, at):
        return [
            metric("cpu_usage", 90, "%"),
            metric("memory_usage", 96.5, "%"),
            metric("disk_usage", 84.9, "%"),
            metric("temperature", 85, "°C"),
            metric("load_average", 4 if at % 20_000 == 0 else 1, ""),
        ]

    def test_many_lines(self):
        """Their numbers keep their places, and each has its name at its end, or none has."""
        lines = {f"worker_{number}": f"worker {number}" for number in range(10)}
        server = self.live(sources=[], panels=[sse.Panel("Ten", lines)])
        places = (
            "[...document.querySelectorAll('.reading')].map(element => element.offsetLeft).join()"
        )
        self.go(server.url)
        self.size(390)
        server.publish(*(metric(name, 9.5, "req/s") for name in lines))
        self.browser.until("cards.length === 1 && !frame")
        before = self.browser.js(places)
        server.publish(*(metric(name, 12345.5, "req/s") for name in lines))
        self.browser.until("document.querySelector('.reading b').innerText.length > 5 && !frame")
        self.assertEqual(self.browser.js(places), before)
        named = "cards[0].written.filter(({string}) => string.startsWith('worker')).length"
        for height, count in ((300, 0), (1440, 10)):
            self.size(1440, height)
            self.browser.until(f"!frame && {named} === {count}")

    def test_a_thresholds_number_is_at_its_line(self):
        """At the edge of a scale, too: the number of one beyond the edge stands farther in."""
        panels = [
            sse.Panel("Over", {"over": ""}, thresholds={"warning": 4, "error": 6}),
            sse.Panel("Under", {"under": ""}, thresholds={"warning": -6, "error": -4}),
        ]
        values = {"over": 3.3, "under": -3.3}
        act = Drawn(lambda t: [metric(n, v * (t % 9000) / 8000) for n, v in values.items()], panels)
        self.go(self.live(sources=[act], interval=1.0).url)
        self.browser.until("cards.length === 2 && cards.every(({written}) => written.length)")
        for card, line, beyond in ((0, "4", "↑ 6"), (1, "-4", "↓ -6")):
            off = self.browser.js(
                f"(card => {{ const {{right, y}} = plotter(card, shown, plotBox(card));"
                "const place = string => card.written.findLast(w => w.string === string"
                " && w.left > right); const middle = w => (w.top + w.bottom) / 2;"
                f"return [middle(place('{line}')) - y({line}), Math.abs(middle(place('{beyond}'))"
                f" - y({line}))]; }})(cards[{card}])"
            )
            self.assertLess(abs(off[0]), 8)
            self.assertGreater(off[1], 12)

    def test_trouble_is_seen(self):
        """A metric's edge, number, gauge and word over a threshold; the summary leads to it."""
        server = self.live(sources=[Drawn(self.trouble, Simulation.panels)], interval=1.0)
        self.go(server.url)
        self.browser.until(
            "document.querySelector('#trouble').innerText === '2 critical, 2 warnings'"
            " && document.querySelector('#trouble').checkVisibility()"
        )
        self.assertIn("2 critical, 2 warnings", self.browser.js("document.title"))
        self.browser.until("document.querySelector('#icon').href.includes('d0342c')")
        found = self.browser.js(
            "(look => Object.fromEntries(cards.map(({title, element}) => [title, ["
            "element.dataset.level ?? '',"
            "(e => e.hidden || e.innerText.trim())(element.querySelector('.badge')),"
            "look(element).borderTopColor, look(element.querySelector('b')).color,"
            "look(element.querySelector('.value') ?? element).stroke]])))(getComputedStyle)"
        )
        levels = {title: entry[:2] for title, entry in found.items()}
        warning, critical = ["warning", "Warning"], ["error", "Critical"]
        self.assertEqual(
            levels,
            {
                "CPU": warning,
                "Memory": critical,
                "Disk": ["", True],
                "Temperature": critical,
                "Load": warning,
            },
        )
        for title in ("CPU", "Memory"):
            self.assertEqual(len(set(found[title][2:])), 1)
            self.assertNotEqual(found[title][3], found["Disk"][3])
        self.browser.js("document.querySelector('#trouble').click()")
        self.assertEqual(
            self.browser.js(
                "document.activeElement.closest('.card').querySelector('h3').innerText"
            ),
            "Memory",
        )
        server.__exit__(None, None, None)
        self.browser.state("Reconnecting")
        self.assertEqual(  # what is old is quiet, gauges too
            self.browser.js(
                "[...new Set([...document.querySelectorAll('.number b, .value')].map(e => "
                "getComputedStyle(e)[e.matches('b') ? 'color' : 'stroke']))]"
            ),
            [self.browser.js("paint.quiet")],
        )

    def test_trouble_agrees_with_the_servers_alerts(self):
        """At every tick the page's level is that of the server's alerts: down only after calm."""
        self.go(self.live().url)
        simulation, names = (
            Simulation(),
            ("cpu_usage", "memory_usage", "temperature", "load_average"),
        )
        start = 1_767_225_600_000
        ticks = range(start, start + 3_600_000, 1000)
        events = {tick: simulation.events_at(tick) for tick in ticks}
        values = {
            name: [
                event.fields["value"]
                for tick in ticks
                for event in events[tick]
                if event.type == "metric" and event.fields["name"] == name
            ]
            for name in names
        }
        levels = self.browser.js(
            f"(given => Object.entries(given).map(([name, values]) => {{"
            "const {limits} = state.panels.find(({names}) => names.includes(name));"
            "const series = newSeries(); return [name, values.map((value, i) => {"
            f"append(series, {start} + i * 1000, value, 1000); return severity(series, limits);"
            f"}})]; }}))({json.dumps(values)})"
        )
        alerts = 0
        for name, shown in levels:
            at_last = None
            for tick, level in zip(ticks, shown):
                for event in events[tick]:
                    if event.type == "alert" and event.fields.get("metric") == name:
                        alerts += 1
                        at_last = event.fields["level"]
                        self.assertEqual(level, at_last.replace("success", ""), (name, tick))
                if at_last:
                    self.assertEqual(level == "", at_last == "success", (name, tick))
        self.assertGreater(alerts, 10)

    def test_meters_and_their_contrast(self):
        """A gauge shows its panel's range, and no number touches an arc; its value stands out from
        its track in every mode. A chart shows its panel's thresholds."""
        panels = [
            sse.Panel("Bar", {"bar": ""}, "bar", -20, 60, {"warning": 30, "error": 45}),
            sse.Panel("Arc", {"arc": ""}, "arc", 0, 8e9),
            sse.Panel("Full", {"full": ""}, "arc", 0, 100),
            sse.Panel("Long", {"long": ""}, "arc", 0, 1000, {"error": 9000}),
            sse.Panel("Two", {"one": "first", "two": "second"}),
        ]
        start = time.time_ns() // 1_000_000 - 5000

        def act(tick):
            return [
                metric("bar", 0, "°C"),
                metric("arc", 9e9, "B"),
                metric("full", 99.9 if tick < start else 100, "%"),
                metric("long", 345.67, "ms"),
                metric("one", 5),
                metric("two", 5),
            ]

        self.go(self.live(sources=[Drawn(act, panels)]).url)
        self.browser.until("document.querySelectorAll('[role=meter]').length === 4")
        numbers = self.browser.js(
            "[...document.querySelectorAll('.arc')].map(arc => {"
            "const {left, width, top, height} = arc.firstChild.getBoundingClientRect();"
            "const [x, foot] = [left + width / 2, top + height * 61 / 62];"
            "const texts = [...arc.querySelectorAll('.number > *')];"
            "const boxes = texts.map(text => text.getBoundingClientRect());"
            "const corners = boxes.flatMap(({left, right, top}) => [[left, top], [right, top]]);"
            "const [inner, outer] = [51, 59].map(radius => radius * width / 120);"
            "const touch = ([cx, cy]) => { const away = Math.hypot(cx - x, cy - foot);"
            "return cy < foot - 1 && away > inner && away < outer; };"
            "return [arc.innerText.trim().replace(/\\s+/g, ' '), corners.some(touch)]; })"
        )
        self.assertEqual(numbers, [["9.00 GB", False], ["100.0 %", False], ["345.67 ms", False]])
        self.assertEqual(
            self.browser.js(
                "[...document.querySelectorAll('[role=meter]')].map(e => ["
                "e.getAttribute('aria-label'),"
                "...['min', 'max', 'now', 'text'].map(part => e.getAttribute(`aria-value${part}`)),"
                "e.querySelector('.value').getAttribute('stroke-dasharray')])"
            ),
            [
                ["Bar", "-20", "60", "0", "0 °C", "25 100"],
                ["Arc", "0", "8000000000", "8000000000", "9.00 GB", "100 100"],
                ["Full", "0", "100", "100", "100.0 %", "100 100"],
                ["Long", "0", "1000", "345.67", "345.67 ms", "34.567 100"],
            ],
        )
        self.browser.until("cards.every(({written}) => written.length)")
        edges, inked = self.browser.js(
            "[cards.map(({written}) => written.map(({string}) => string).join(' ')),"
            f"['warning', 'error'].flatMap(level => [0, plotBox(cards[0]).right + 1].map(left =>"
            f"{PIXELS}(cards[0], level, left)))]"
        )
        self.assertRegex(edges[0], r"\b30\b.* 45\b|\b45\b.* 30\b")
        self.assertIn("↑ 9,000", edges[3])
        self.assertRegex(edges[4], "first.* second|second.* first")  # though they end at one place
        self.assertGreater(min(inked[::2]), 100)  # of a line ...
        self.assertGreater(min(inked[1::2]), 0, inked)  # ... and of its number
        contrast = (
            "(() => { const canvas = document.createElement('canvas');"
            "const c = canvas.getContext('2d', {willReadFrequently: true});"
            "const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;"
            "const light = name => {"
            "c.fillStyle = getComputedStyle(document.querySelector(`.bar .${name}`)).stroke;"
            "c.fillRect(0, 0, 1, 1);"
            "const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map(v => linear(v / 255));"
            "return .05 + .2126 * r + .7152 * g + .0722 * b; };"
            "const [a, b] = [light('value'), light('track')]; return Math.max(a / b, b / a); })()"
        )
        for features in (
            {"prefers-color-scheme": "light"},
            {"prefers-contrast": "more"},
            {"forced-colors": "active"},
            {"prefers-color-scheme": "dark"},
            {"prefers-contrast": "more", "prefers-color-scheme": "dark"},
            {"forced-colors": "active", "prefers-color-scheme": "dark"},
        ):
            with self.subTest(**features):
                self.browser.cdp(
                    "Emulation.setEmulatedMedia",
                    features=[{"name": name, "value": value} for name, value in features.items()],
                )
                self.assertGreaterEqual(self.browser.js(contrast), 3)
                quiet = "getComputedStyle(document.querySelector('.range')).color"
                self.browser.until(f"paint.quiet === {quiet}")  # the canvas follows, too
                chosen = "getComputedStyle(document.querySelector('#windows [aria-pressed={}]'))"
                look = "(s => [s.borderTopColor, s.backgroundColor].join())({})"
                self.assertNotEqual(
                    *(self.browser.js(look.format(chosen.format(on))) for on in ("true", "false"))
                )

    def test_density_paper_and_the_way_to_the_alerts(self):
        """Sharp at another density without a resize; on paper light, and no alert is cut; a phone
        reaches the alerts."""
        self.browser.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark"}],
        )
        server = self.live()
        self.go(server.url)
        for number in range(12):
            server.publish(alert("info", f"{number} times " + "a long word " * 60))
        self.browser.until(f"cards.length === {len(sse.PANELS)}")
        width = self.browser.js("cards[0].canvas.clientWidth")
        self.browser.until(f"Math.abs(cards[0].canvas.width - {width}) <= 1")
        self.size(1440, density=2)
        self.browser.until(f"Math.abs(cards[0].canvas.width - 2 * {width}) <= 1")
        rules = f"{PIXELS}(cards[0], 'rule', cards[0].canvas.width - 200, 0, 200)"
        self.assertGreater(self.browser.js(rules), 100)  # all of it is drawn
        self.browser.js(
            "addEventListener('beforeprint', () => { window.printed = [paint.card,"
            f"getComputedStyle(document.body).colorScheme, {rules},"
            "cards.map(({canvas}) => canvas.width)]; })"
        )
        dark = self.browser.js("paint.card")
        self.browser.js("zoned = null")  # paper does not wait for the language
        self.browser.cdp("Page.printToPDF")
        self.assertTrue(self.browser.js("zoned !== null"))
        self.browser.until("window.printed !== undefined && paint.card !== window.printed[0]")
        self.assertEqual(self.browser.js("window.printed[0]"), "rgb(255, 255, 255)")
        self.assertGreater(self.browser.js("window.printed[2]"), 100)
        self.assertEqual(set(self.browser.js("window.printed[3]")), {660})  # of whatever window
        self.browser.until(f"paint.card === {json.dumps(dark)}")
        self.browser.until(f"Math.abs(cards[0].canvas.width - 2 * {width}) <= 1")
        self.browser.until("document.querySelectorAll('#rows li').length === 12")
        whole = (
            "[...document.querySelectorAll('#log, #rows p')]"
            ".every(({scrollHeight, clientHeight}) => scrollHeight <= clientHeight + 1)"
        )
        self.assertFalse(self.browser.js(whole))
        self.browser.cdp("Emulation.setEmulatedMedia", media="print")
        self.assertTrue(self.browser.js(whole))
        self.assertEqual(
            self.browser.js(
                "[['button:not(#trouble, :has(time)), #wire, [role=group]',"
                "e => e.checkVisibility()],"
                "['.card, #rows li', e => getComputedStyle(e).breakInside],"
                "['canvas', e => getComputedStyle(e).objectFit]].map(([selector, look]) =>"
                "[...new Set([...document.querySelectorAll(selector)].map(look))])"
            ),
            [[False], ["avoid"], ["contain"]],
        )
        self.browser.cdp("Emulation.setEmulatedMedia", media="")
        self.size(390, 844)
        self.browser.js("scrollTo(0, 1000)")
        self.browser.js("document.querySelector('#reach').click()")
        self.browser.until(
            "(r => r.top >= 0 && r.bottom < innerHeight)"
            "(document.querySelector('#rows li').getBoundingClientRect())"
        )
        self.assertEqual(self.browser.js("document.activeElement.id"), "log")

    def test_a_chart_is_never_seen_stretched(self):
        """The frame in which a chart gets another size draws it anew."""
        self.go(self.live().url)
        self.browser.until(f"cards.length === {len(sse.PANELS)} && cards.every(c => c.drawn)")
        wrong = self.browser.js(
            "new Promise(done => {"
            "const off = ({canvas}) => canvas.width - canvas.clientWidth * devicePixelRatio;"
            "document.querySelector('main').style.width = '60%';"
            "requestAnimationFrame(() => setTimeout(() => done(cards.map(off)))); })"
        )
        self.assertLessEqual(max(map(abs, wrong)), 1)

    def test_a_charts_name_stays_and_its_value_changes(self):
        """The name is the title; the value is a sentence: now, lowest and highest."""
        self.go(self.live().url)
        said = "document.querySelector('canvas').getAttribute('aria-valuetext')"
        at = "[\\\\d.]+ % at [\\\\d:]+"
        sentence = f"^CPU [\\\\d.]+ %, lowest {at}, highest {at}, in the last 5 min$"
        self.browser.until(f"RegExp('{sentence}').test({said})")
        before = self.browser.js(said)
        self.browser.until(f"{said} !== {json.dumps(before)}")
        self.browser.js("document.querySelector('canvas').focus()")  # who listens is left in peace
        before, newest = self.browser.js(f"[{said}, state.newest]")
        self.browser.until(f"state.newest > {newest} + 500 && !frame")
        self.assertEqual(self.browser.js(said), before)
        self.assertEqual(
            self.browser.js("document.querySelector('canvas').getAttribute('aria-label')"), "CPU"
        )


class OddData(InABrowser):
    """What a program may send, too: the page shows it as it is, and lives on."""

    NOW = 1_800_000_000_000

    def opened(self, *panels, types=()):
        """A page on a server that says only what it is told. What came is of now."""
        self.server = self.puppet()
        self.go(self.server.url, state="")
        self.server.opened()
        self.server.status(self.NOW)
        self.server.say("panels", self.NOW, panels=panels, types=types, history_seconds=300.0)
        return self.server

    def say(self, moment, number, name, value, unit="", at=None):
        at = None if at is None else self.NOW + at * 1000
        fields = {"name": name, "value": value, "unit": unit, "at": at}
        self.server.say("metric", self.NOW + moment * 1000, number, **fields)

    def test_an_event_type_with_the_name_of_a_browsers_own(self):
        """`open` is one of a program's types, and of what a browser says of its own stream."""
        server = self.live(sources=[Counting()])
        self.go(server.url)
        server.publish(sse.Event("open", {"door": 3}))
        self.browser.until("state.types.includes('open')")
        for connection in list(server.deadlines):
            sse.hang_up(connection)
        self.browser.until("link.tries === 1")
        self.browser.state("Live")
        server.publish(sse.Event("open", {"door": 4}))
        self.browser.until("state.wire.some(({data}) => data.includes('\"door\": 4'))")
        self.assertEqual(self.browser.js("link.tries"), 1)

    def test_the_largest_numbers(self):
        """They have a scale, and no loop over its steps is without an end."""
        self.opened()
        for number, value in enumerate((sys.float_info.max, -sys.float_info.max, 1), 1):
            self.say(number, number, "best", value)
            self.server.status(self.NOW + number * 1000)
            self.browser.until(f"state.series.get('best')?.values.at(-1) === {value}")
        self.browser.until("!frame && cards[0]?.drawn")
        self.assertLessEqual(self.browser.js("cards[0].room.axisLabels.steps.length"), 12)
        self.assertTrue(self.browser.js("Number.isFinite(cards[0].scale.to - cards[0].scale.from)"))

    def test_a_link_to_a_time_that_has_not_come(self):
        """A stretch in the future ends at the newest event; one that no server holds is none, nor
        is one that no calendar has."""
        server = self.live()
        url, now, never = server.url, time.time_ns() // 1_000_000, 9_000_000_000_000_000
        for begin, end in ((now, now + 3_600_000), (never, never + 60_000)):
            self.browser.call("POST", "/url", {"url": "about:blank"})
            self.go(f"{url}#from={begin}&to={end}")
            self.browser.until("!frame && cards[0]?.drawn && shown.end <= newestMoment()")
        for begin, end in ((now - 100_000, now * 1000), (-never, 60_000 - never)):
            self.browser.js(f"location.hash = 'from={begin}&to={end}'")
            self.browser.until("!location.hash && !frame && newestMoment() - shown.end < 3000")

    def test_what_comes_after_the_last_metric(self):
        """An alert is shown at its own moment. A value that is older than what is held has no card,
        however old the newest one is."""
        server = self.opened()
        self.say(0, 1, "loss", 1)
        moment = self.NOW + 9000
        server.say("alert", moment, 1, level="error", message="it stopped", metric="loss")
        server.status(self.NOW + 10_000)
        self.browser.until(f"state.status.time === {self.NOW + 10_000} && cards[0]?.drawn")
        self.browser.js("document.querySelector('#rows li').moment.click()")
        self.browser.until(f"cursorTime(shown) === {moment}")
        self.say(11, 1, "ancient", 1, at=-295)
        self.browser.until("state.lastEventId.endsWith('011000-1')")
        self.assertFalse(self.browser.js("state.series.has('ancient')"))

    def test_a_stretch_between_two_points(self):
        """It is looked at: a line crosses it, though no point is in it. Only before the first point
        is nothing held."""
        self.opened()
        for second in (-100, -50, 0):
            self.say(second, 1, "rare", second)
        self.server.status(self.NOW)
        self.browser.until("!link.opening && cards[0]?.drawn")
        self.browser.js("zoomTo(state.newest - 40_000, state.newest - 10_000)")
        self.browser.until("!frame && shown.end === state.newest - 10_000")
        self.browser.js("reach()")
        self.assertEqual(self.browser.js("[!!view.zoom, view.gone]"), [True, ""])
        self.assertGreaterEqual(self.browser.js("cards[0].lines[0].points.length"), 4)
        self.browser.js("look(state.newest - 60_000)")
        self.browser.js("zoomTo(state.newest - 40_000, state.newest - 10_000)")
        self.assertEqual(self.browser.js("view.cursor"), None)  # out of view, it is no centre
        self.browser.js("zoomTo(state.newest - 140_000, state.newest - 110_000)")
        self.browser.until("view.zoom === null && view.gone.endsWith('is no longer held.')")

    def test_a_scale_fits_again_and_grows_under_the_pointer(self):
        """After a spike was looked at; and when older values come while the charts stand still."""
        server = self.opened()
        self.say(-250, 1, "power", 900, "W")
        for second in range(-60, 1):
            self.say(second, 1, "power", 1.5, "W")
        server.status(self.NOW)
        self.browser.until("!link.opening && cards[0]?.drawn")
        self.browser.js("view.window = 60_000, invalidate()")
        self.browser.until("!frame && cards[0].scale.to < 10")
        self.browser.js("look(state.newest - 250_000)")
        self.browser.until("!frame && cards[0].scale.to >= 900")
        self.browser.js("backToLive()")
        self.browser.until("!frame && cards[0].scale.to < 10")
        self.browser.js("hoverAt(state.newest - 5000)")
        self.browser.until("!frame && view.frozen")
        self.browser.js("state.series.get('power').values.fill(500, 5, 20), invalidate()")
        self.browser.until("!frame && cards[0].scale.to >= 500")

    def test_what_is_gone_is_judged_by_ids(self):
        """A program's own, older times are no sign that the server says a time anew. What is gone
        is said for five minutes from when it is known, however long it was."""
        server = self.opened()
        for second in range(-20, 1):
            self.say(second, 1, "own", second)
        server.status(self.NOW)
        self.browser.until("!link.opening && state.series.get('own').times.length === 21")
        server.say("reset", self.NOW, reason="expired")
        server.status(self.NOW + 200_000)
        fields = {"level": "info", "message": "late", "at": self.NOW - 10_000}
        server.say("alert", self.NOW + 1000, 1, **fields)
        self.browser.until("state.marks.some(({label}) => label === 'events lost')")
        self.assertEqual(len(self.points("own")), 21)
        self.browser.until("document.querySelector('#notice').innerText.includes('are gone')")
        self.say(350, 1, "own", 1)
        server.status(self.NOW + 350_000)
        self.browser.until(f"state.status.time === {self.NOW + 350_000} && !frame")
        self.assertIn("are gone", self.browser.text("#notice"))
        server.status(self.NOW + 501_000)
        self.browser.until("document.querySelector('#notice').innerText.trim() === ''")

    def test_a_mark_and_a_key_lead_to_what_is_in_view(self):
        """Of an alert that was said twice, to the moment of that mark; by Home and End to the first
        and the last point, also where a gap begins there. A chart that is live says so."""
        server = self.opened()
        for second in range(-60, 1):
            self.say(second, 1, "own", second)
            if second in (-40, -20):
                fields = {"level": "error", "message": "again", "metric": "own"}
                server.say("alert", self.NOW + second * 1000, 2, **fields)
        server.status(self.NOW)
        self.browser.until("!link.opening && cards[0]?.drawn && state.alerts[0].count === 2")
        self.browser.js("cards[0].canvas.focus()")
        self.browser.js("zoomTo(state.newest - 50_000, state.newest - 30_000)")
        self.browser.until("!frame && cards[0].alerts.length === 1")
        self.browser.js(
            "(card => { const plot = plotter(card, shown, plotBox(card));"
            "const {px, py} = markAt(card, plot, card.alerts[0].time);"
            "const event = {offsetX: px, offsetY: py, button: 0, pointerType: 'touch'};"
            "pointerDown(card, event); pointerUp(card, event); })(cards[0])"
        )
        self.assertEqual(self.browser.js("view.cursor"), self.NOW - 40_000)
        self.browser.until("!frame && cards[0].canvas.ariaValueNow < 0")
        self.browser.js("backToLive()")
        self.assertEqual(self.browser.js("cards[0].canvas.ariaValueNow"), "0")
        self.browser.js("cards[0].series[0].values[20] = NaN")
        for key, *places in (("Home", 20, 40, 21), ("End", 0, 20, 19)):
            begin, end, wanted = (self.NOW - 60_000 + place * 1000 for place in places)
            self.browser.js(f"view.cursor = null, zoomTo({begin}, {end})")
            self.browser.until(f"!frame && shown.end === {end}")
            self.browser.js(f"keyDown(cards[0], {{key: '{key}', preventDefault() {{}}}})")
            self.assertEqual(self.browser.js("[view.cursor, view.zoom.end]"), [wanted, end])

    def test_no_control_takes_the_focus_with_it(self):
        """What goes, or can do no more, hands the focus on."""
        server = self.opened({"title": "Hot", "metrics": {"own": ""}, "thresholds": {"error": 5}})
        for second in range(-30, 1):
            self.say(second, 1, "own", 10)

        def say_alerts(numbers):
            for number in numbers:
                fields = {"level": "info", "message": f"number {number}"}
                server.say("alert", self.NOW, number, **fields)

        say_alerts(range(2, 22))
        server.status(self.NOW)
        self.browser.until("!link.opening && cards[0]?.drawn && !$('trouble').hidden")
        self.browser.until("!$('older').hidden")
        focus = "document.activeElement.id || document.activeElement.className"

        def use(button, wanted):
            self.browser.js(f"$('{button}').focus(), $('{button}').click()")
            self.browser.until(f"!frame && ({focus}) === '{wanted}'")

        self.browser.js("cards[0].toggle.click()")
        use("trouble", "table")
        self.browser.js("zoomBy(.5)")
        self.browser.until("!frame && !$('wider').disabled")
        use("wider", "closer")
        self.browser.js("look(state.newest - 10_000)")
        self.browser.until("!frame && !$('live').hidden")
        use("live", "closer")
        self.browser.js("standStill('pointer', true)")
        self.browser.until("view.still?.length === 20")  # and 8 are yet to come
        say_alerts(range(22, 30))
        self.browser.until("!frame && !$('fresh').hidden")
        use("older", "log")
        self.browser.js("fail()")
        self.browser.until("!frame && !$('retry').hidden")
        use("retry", "state")

    def test_a_table_has_the_highest_of_what_is_shown(self):
        """A higher one just before it takes no other's place."""
        self.opened()
        times = [self.NOW + n * 1000 for n in range(10)]
        series = f"{{times: {times}, values: [1, 2, 3, 4, 90, 80, 12, 11, 10, 12]}}"
        begin = times[4] + 500
        axis = f"{{from: {begin}, end: {begin} + 30 * 3_600_000}}"  # all are in one of its parts
        self.assertIn(times[5], self.browser.js(f"tableTimes([{series}], {axis})"))

    def test_a_scale_has_one_unit(self):
        """A panel with two has a card for each; a line that has not come is with the first. What a
        metric said in another unit is not drawn on the new one's scale."""
        lines = {"p50": "median", "p99": "worst", "p95": ""}
        self.opened({"title": "Latency", "metrics": lines})
        self.say(0, 1, "p50", 120, "ms")
        self.browser.until("cards.map(({title}) => title).join() === 'Latency'")
        self.say(0, 2, "p99", 1.5, "s")
        titles = "cards.map(({title, names}) => [title, ...names].join(' ')).join()"
        self.browser.until(f"{titles} === 'Latency, ms p50 p95,Latency, worst p99'")
        for second, value, unit in ((1, 899, "MB"), (2, 0.889, "GB"), (3, 0.89, "GB")):
            self.say(second, 1, "size", value, unit)
        self.browser.until("cards.at(-1).sentence.startsWith('Size 0.89')")
        self.assertNotIn("899", self.browser.js("cards.at(-1).sentence"))

    def test_a_clock_that_is_ahead_or_behind(self):
        """The axis is the server's time: a metric from the future takes no other's place, and one
        of long ago has no card."""
        self.opened()
        for second in range(-5, 1):
            self.say(second, 1, "own", second)
        self.say(0, 2, "ahead", 1, at=600)
        self.say(0, 3, "behind", 1, at=-1e6)
        self.server.status(self.NOW)
        self.say(1, 1, "own", 1)
        self.browser.until("state.series.get('own')?.values.at(-1) === 1")
        self.assertEqual(self.browser.js("state.newest"), self.NOW + 1000)
        self.assertEqual(len(self.points("own")), 7)
        self.browser.until("cards.map(({title}) => title).join() === 'Own,Ahead'")

    def test_alerts_with_times_of_their_own(self):
        """The newest is first, whatever came first; the same one of minutes ago is another one."""
        server = self.opened()
        for number, (message, ago) in enumerate(
            (("disk", 0), ("disk", 280), ("fan", 100), ("disk", 30)), 1
        ):
            fields = {"level": "error", "message": message, "at": self.NOW - ago * 1000}
            server.say("alert", self.NOW, number, **fields)
        self.browser.until("document.querySelectorAll('#rows li').length === 3")
        listed = "state.alerts.map(({message, time, count}) => [message, time, count])"
        expected = [["disk", 0, 2], ["fan", 100, 1], ["disk", 280, 1]]
        self.assertEqual(
            self.browser.js(listed),
            [[message, self.NOW - ago * 1000, count] for message, ago, count in expected],
        )
        self.assertFalse(self.shown("#live"))
        self.browser.js("document.querySelector('#rows li').moment.click()")
        self.browser.until("document.querySelectorAll('#rows .chosen').length === 1")
        self.assertEqual(self.browser.text("#notice"), "")  # it is held, though no chart is here

    def test_a_line_that_is_gone(self):
        """Of two in a panel one is older than the history: its number is a dash again."""
        lines = {"a": "left", "b": "right"}
        self.opened({"title": "Both", "metrics": lines, "thresholds": {"error": 5}})
        self.say(0, 1, "a", 7)
        self.say(0, 2, "b", 1)
        self.browser.until("document.querySelector('[data-metric=a]')?.innerText.trim() === '7'")
        self.say(400, 1, "b", 2)
        self.server.status(self.NOW + 400_000)
        self.browser.until("!state.series.has('a') && !frame")
        reading = "document.querySelector('[data-metric=a]').closest('.reading')"
        self.assertEqual(self.browser.js(f"{reading}.querySelector('.range').innerText.trim()"), "")
        self.assertEqual(self.browser.js(f"{reading}.dataset.level"), None)
        self.assertEqual(self.browser.text("[data-metric=a]"), "–")

    def test_a_moment_is_looked_at_until_it_is_gone(self):
        """Then the page says so, and is live again: it does not go on over an empty chart."""
        self.opened()
        self.say(-1, 1, "own", 1)
        self.say(0, 1, "own", 2)
        self.server.status(self.NOW)
        self.browser.until("!frame && cards[0]?.drawn")
        self.browser.js("look(state.newest), 0")
        self.browser.until("document.querySelector('#live').checkVisibility()")
        for second in (350, 700):
            self.say(second, 1, "own", second)
        self.server.status(self.NOW + 700_000)
        self.browser.until("document.querySelector('#notice').innerText.includes('no longer held')")
        self.assertTrue(self.browser.js("view.cursor === null && view.frozen === null"))
        self.browser.js("document.querySelector('#live').click()")
        self.browser.until("document.querySelector('#notice').innerText.trim() === ''")

    def test_many_lines_under_the_crosshair(self):
        """The box of words stays within its chart, and says how many more there are."""
        lines = {f"core_{number}": f"core {number}" for number in range(16)}
        self.opened({"title": "Cores", "metrics": lines})
        for number in range(16):
            self.say(0, number + 1, f"core_{number}", number)
        self.browser.until("!frame && cards[0]?.drawn && cards[0].series.length === 16")
        self.browser.js("look(state.newest), 0")
        self.size(390, 844)
        self.browser.until(
            "!frame && cards[0].readout?.words.at(-1).endsWith(' more in the table')"
        )
        inside = "(({readout, height}) => readout.top >= 0 && readout.bottom <= height)(cards[0])"
        self.assertTrue(self.browser.js(inside))


class Relay:
    """A proxy on a free port. It hands a request to the server whose prefix its path has, without
    that prefix, and hands event streams back at `rate` bytes a second; 0 is as fast as can be."""

    def __init__(self, servers, rate=0):
        self.servers, self.rate = servers, rate
        self.ended, self.sockets = threading.Event(), []
        self.listener = self.keep(socket.create_server(("127.0.0.1", 0)))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.run(self.accept)

    def run(self, target, *arguments):
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def keep(self, connection):
        self.sockets.append(connection)
        return connection

    def accept(self):
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                self.run(self.carry, self.keep(self.listener.accept()[0]))

    def carry(self, client):
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                chunk = client.recv(65536)
                if not chunk:
                    return
                head += chunk
            path = head.split()[1].decode()
            prefix = max((prefix for prefix in self.servers if path.startswith(prefix)), key=len)
            with self.keep(socket.create_connection(self.servers[prefix])) as server:
                server.sendall(head.replace(prefix.encode(), b"/", 1))
                while chunk := server.recv(1024):
                    client.sendall(chunk)
                    if self.rate and "/api/events/" in path:
                        self.ended.wait(len(chunk) / self.rate)

    def close(self):
        self.ended.set()
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def page_with(*settings):
    """Our page with other settings: a test that waits for them takes less time."""
    page = (HERE / "index.html").read_text("utf-8")
    for ours, others in settings:
        assert page.count(ours) == 1, ours
        page = page.replace(ours, others)
    return page


class Puppet(http.server.ThreadingHTTPServer):
    """A server that says on its event stream what a test tells it to say, and nothing of its own.
    Its page may have other settings than ours, to shorten a wait."""

    daemon_threads = True
    greets = False  # whether it says a `status` on every stream by itself

    class RequestHandlerClass(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/api/events/all"):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                if self.server.greets:
                    self.server.stream = self.wfile
                    self.server.status(time.time_ns() // 1_000_000)
                self.server.streams.put(self.wfile)
                self.server.ended.wait()
            else:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(self.server.page)

        def log_message(self, *_):
            pass

    def __init__(self, *settings):
        self.page = page_with(*settings).encode()
        self.streams, self.ended = queue.Queue(), threading.Event()
        super().__init__(("127.0.0.1", 0), self.RequestHandlerClass)
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request, client_address):
        pass  # a page that leaves is no error

    def opened(self):
        """Waits for a stream to be opened, and speaks on that one from now on."""
        self.stream = self.streams.get(timeout=DEADLINE)

    def say(self, kind, moment, number=0, at=None, **fields):
        """Says an event of a moment, whose ID it has, with that or another one as its time."""
        time = sse.timestamp(moment if at is None else at)
        data = json.dumps({"type": kind, **fields, "timestamp": time})
        end = f"id: {moment}-{number}\n\n" if number else "\n"
        self.stream.write(f"event: {kind}\ndata: {data}\n{end}".encode())

    def status(self, moment, instance="one", uptime=100.0, interval=1.0):
        fields = {"uptime_seconds": uptime, "interval_seconds": interval, "connections": 1}
        self.say("status", moment, instance=instance, **fields)

    def __exit__(self, *_):
        self.ended.set()
        self.shutdown()
        self.server_close()


class ThePast(InABrowser):
    """What was: the crosshair, zoom, windows, links, alerts on charts, and tables."""

    history = 300.0

    LOAD = "cards.find(({title}) => title === 'Load')"

    def mouse(self, kind, x, y, **how):
        self.browser.cdp("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **how)

    def finger(self, *places):
        """Puts a finger down, moves it on and lifts it."""
        for kind, place in zip(("Start", *("Move",) * len(places)), places):
            points = [{"x": place[0], "y": place[1]}]
            self.browser.cdp("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=points)
        self.browser.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def place(self, title, part=0.5):
        """A point of a card's plot, in the window's pixels."""
        return self.browser.js(
            f"(() => {{ const card = cards.find(({{title}}) => title === '{title}');"
            "const {left, right, top, bottom} = plotBox(card);"
            "const {x, y} = card.canvas.getBoundingClientRect();"
            f"return [x + left + (right - left) * {part}, y + (top + bottom) / 2]; }})()"
        )

    def test_the_crosshair_reads_beside_the_point(self):
        """Under a resting pointer all charts stand still on its time and read it; the stream runs
        on."""
        self.go(self.live().url)
        self.browser.until("zoned !== null")
        x, y = self.place("CPU")
        self.mouse("Moved", x, y)
        self.browser.until("cards.every(card => card.readout)")
        time, end = self.browser.js("[cursorTime(shown), shown.end]")
        values = [event.fields["value"] for event in Simulation(0, 0.25).events_at(time)[:7]]
        words = " ".join(self.browser.js("cards.flatMap(card => card.readout.words)"))
        self.assertIn(f"{values[0]:.1f} %", words)
        self.assertIn(f"{values[5]:.1f} °C", words)
        boxes = self.browser.js(
            "cards.map(({readout}) => [readout.left, readout.right, readout.px, readout.words[0]])"
        )
        said = self.browser.js(f"momentInWords({time})")
        for left, right, point, moment in boxes:
            self.assertFalse(left - 2 <= point <= right + 2)
            self.assertEqual(moment, said)
        for part, side in ((0.03, "left"), (0.97, "right")):
            self.mouse("Moved", *self.place("CPU", part))
            self.browser.until(f"cursorTime(shown) !== {time} && !frame")
            edge = {
                "left": "readout.left > readout.px",
                "right": "readout.right < readout.px",
            }
            self.assertTrue(self.browser.js(f"cards.every(({{readout}}) => {edge[side]})"), side)
        self.mouse("Moved", x, y)
        self.browser.until(f"cursorTime(shown) === {time} && !frame")
        tall = f"{PIXELS}(card, 'ink', card.readout.px - 1, 0, 3) > card.height / 2"
        self.assertTrue(self.browser.js(f"cards.every(card => {tall})"))
        drawn = self.browser.js("cards[0].canvas.toDataURL()")
        self.browser.until(f"state.newest > {end} + 1000")
        self.assertEqual(self.browser.js("[cursorTime(shown), shown.end]"), [time, end])
        self.assertEqual(self.browser.js("cards[0].canvas.toDataURL()"), drawn)
        self.mouse("Moved", 2, 2)
        self.browser.until(f"cursorTime(shown) === null && shown.end > {end} + 500")

    def test_a_chart_that_goes_from_under_the_pointer(self):
        """The others do not stand still for ever."""
        lines = {"a": "left", "b": "right"}
        server = self.live(sources=[], panels=[sse.Panel("Both", lines)])
        server.publish(metric("a", 1, "MB"))
        self.go(server.url)
        self.browser.until("cards[0]?.drawn")
        self.mouse("Moved", *self.place("Both"))
        self.browser.until("view.frozen !== null")
        server.publish(metric("b", 1, "V"))
        self.browser.until("cards.length === 2")
        self.mouse("Moved", 2, 2)
        self.browser.until("view.hover === null && view.frozen === null")

    def test_the_crosshair_by_keys(self):
        """A chart that has the focus is read by arrows, page, home and end, and zoomed by + and
        -."""
        self.go(self.live().url)
        self.browser.js("document.querySelector('#cards canvas').focus()")
        chart = "document.querySelector('#cards canvas')"
        for _ in range(3):
            self.browser.key("ArrowLeft", 37)
        self.browser.until("/s ago/.test(document.querySelector('#moment').innerText)")
        time = self.browser.js("view.cursor")
        value = Simulation(0, 0.25).events_at(time)[0].fields["value"]
        self.browser.until(
            f"{chart}.getAttribute('aria-valuetext') === momentInWords({time}) + ', {value:.1f} %'"
        )
        steps = []
        for key, code in (
            ("ArrowRight", 39),
            ("ArrowLeft", 37),
            ("PageDown", 34),
            ("PageUp", 33),
            ("Home", 36),
        ):
            before = self.browser.js("view.cursor")
            self.browser.key(key, code)
            steps.append(self.browser.js("view.cursor") - before)
        self.assertEqual(steps[:4], [250, -250, -30_000, 30_000])
        self.assertLess(self.browser.js("view.cursor - shown.from"), 250)
        self.browser.key("PageUp", 33)
        self.browser.key("+", 187)  # around the crosshair
        self.browser.until("shown.end - shown.from === 150000 && cursorTime(shown) !== null")
        self.browser.key("End", 35)
        self.assertLess(self.browser.js("shown.end - view.cursor"), 250)
        end = self.browser.js("shown.end")
        self.browser.key("PageUp", 33)  # out of what is shown
        self.browser.until(
            f"view.cursor > {end} && view.cursor < shown.end && shown.end - shown.from === 150000"
        )
        self.browser.key("-", 189)
        self.browser.until("shown.end - shown.from === 300000")
        self.browser.key("Escape", 27)
        self.browser.until("!/s ago/.test(document.querySelector('#moment').innerText)")
        self.browser.until("shown.end === axisEnd('live') && location.hash === ''")
        self.browser.until(f"/^CPU /.test({chart}.getAttribute('aria-valuetext'))")

    def test_a_stretch_is_seen_closer_and_shared(self):
        """A drag zooms all charts, which fit it; a link shows the same; one control goes back."""
        server = self.live()
        self.go(server.url)
        length = self.browser.js("history.length")
        (x, y), (to, _) = self.place("Load", 0.4), self.place("Load", 0.6)
        self.mouse("Moved", x, y)
        self.mouse("Pressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("Moved", to, y, button="left", buttons=1)
        self.browser.until("view.drag !== null && !frame")
        shaded = self.browser.js(
            "cards.map(card => { const {x, top} = plotter(card, shown, plotBox(card));"
            f"return {DRAWN}(card, x((view.drag.from + view.drag.to) / 2), top + 3); }})"
        )
        self.assertNotIn(False, shaded)
        self.mouse("Released", to, y, button="left", clickCount=1)
        self.mouse("Moved", 2, 2)
        self.browser.until(
            "/from=.*to=/.test(location.hash) && cards.every(card => card.span < 70000)"
        )
        first, last = self.browser.js("[shown.from, shown.end]")
        self.assertAlmostEqual(last - first, 60_000, delta=4000)
        simulation = Simulation(0, 0.25)
        loads = [
            simulation.events_at(tick)[6].fields["value"]
            for tick in range(-int(-first // 250) * 250, int(last) + 1, 250)
        ]
        low, high = self.browser.js(f"(({{scale}}) => [scale.from, scale.to])({self.LOAD})")
        self.assertLessEqual(low, min(loads))
        self.assertGreaterEqual(high, max(loads))
        self.assertLess(high - low, 4 * (max(loads) - min(loads)) + 0.1)
        self.browser.js("look(Math.round((shown.from + shown.end) / 2)), 0")
        self.browser.until("/at=/.test(location.hash)")
        link, cursor = self.browser.js("[location.href, view.cursor]")
        spans = self.browser.js(
            "['wider', 'closer', 'closer'].map(id => { document.querySelector(`#${id}`).click();"
            "return view.zoom.end - view.zoom.from; })"
        )
        for span, times in zip(spans, (2, 1, 0.5), strict=True):
            self.assertAlmostEqual(span, times * (last - first), delta=1)
        self.assertTrue(self.shown("#live"))
        self.browser.js("document.querySelector('#live').click()")
        self.browser.until("location.hash === '' && shown.end > view.window && view.zoom === null")
        self.assertFalse(self.shown("#live"))
        self.assertEqual(self.browser.js("history.length"), length)
        self.browser.call("POST", "/url", {"url": "about:blank"})
        self.go(link)
        self.browser.until(f"cursorTime(shown) === {cursor}")
        seen = self.browser.js("[shown.from, shown.end]")
        self.assertLess(abs(seen[0] - first) + abs(seen[1] - last), 2)
        self.browser.js(
            f"location.hash = 'from={int(first) - 9_000_000}&to={int(last) - 9_000_000}'"
        )
        self.browser.until("/no longer held/.test(document.querySelector('#notice').innerText)")
        self.browser.until("location.hash === ''")
        self.browser.js(
            f"location.hash = 'from={int(first) + 9_000_000}&to={int(last) + 9_000_000}'"
        )
        self.browser.until("/yet to come/.test(document.querySelector('#notice').innerText)")
        self.browser.until("location.hash === ''")

    def test_a_finger(self):
        """It leaves the crosshair where it was lifted, with the time at the chart; one that
        scrolls leaves nothing."""
        self.browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=844,
            deviceScaleFactor=1,
            mobile=True,
        )
        self.browser.cdp("Emulation.setTouchEmulationEnabled", enabled=True)
        self.addCleanup(self.browser.cdp, "Emulation.setTouchEmulationEnabled", enabled=False)
        self.go(self.live().url)
        self.browser.js("cards[2].element.scrollIntoView({block: 'center'})")
        x, y = self.place("Network")
        before = self.browser.js("scrollY")
        self.finger((x, y), *((x, y - 12 * step) for step in range(1, 12)))
        self.browser.until(f"scrollY > {before} + 60")
        self.assertEqual(
            self.browser.js("[view.hover, view.cursor, view.frozen, cursorTime(shown)]"), [None] * 4
        )
        x, y = self.place("Network")
        self.finger((x, y), (x + 30, y))
        self.browser.until("cursorTime(shown) !== null && view.hover === null")
        self.browser.until("cards[2].readout?.words[0] === momentInWords(view.cursor)")
        name = self.browser.js("cards[2].readout.words[1]")
        self.assertRegex(name, "^\u2068in\u2069 [0-9]")  # a name in Arabic takes no number with it
        top = self.browser.js("cards[2].canvas.getBoundingClientRect().y + cards[2].readout.top")
        self.assertTrue(0 <= top <= 844)
        self.browser.js("document.querySelector('#live').click()")
        self.browser.until("cursorTime(shown) === null")

    def test_a_longer_window(self):
        """Up to what the server holds; what this page does not hold it fetches, each point once."""
        server = self.live(history=1800.0, interval=1.0)
        self.go(server.url)
        windows = "[...document.querySelectorAll('#windows button')].map(b => b.innerText).join()"
        self.browser.until(f"{windows} === '1 min,5 min,15 min,30 min'")
        self.assertEqual(self.browser.js("WINDOWS.map(roughly).at(-1)"), "1 h")
        self.assertLess(len(self.points()), 310)
        self.browser.js("document.querySelector('#windows').lastChild.click()")
        self.browser.until("state.series.get('cpu_usage').times.length > 1750")
        self.check_against_simulation(interval=1000)
        ids = self.browser.js("state.alerts.flatMap(({moments}) => moments.map(({id}) => id))")
        self.assertEqual(len(ids), len(set(ids)))
        again = (
            "{type: 'alert', id: state.alerts[0].id, data: JSON.stringify({message: 'again', "
            "timestamp: 1})}"
        )
        self.browser.js(f"prepend([{again}])")
        self.assertEqual(
            ids, self.browser.js("state.alerts.flatMap(({moments}) => moments.map(({id}) => id))")
        )
        merged = self.browser.js(
            """(() => {
              const rows = state.alerts.length, last = state.alerts.at(-1);
              const {level, message, metric} = last;
              const timestamp = new Date(last.moments.at(-1).time - 10_000).toISOString();
              const data = JSON.stringify({level, message, metric, timestamp});
              prepend([{type: 'alert', id: '1-1', data}]);
              const {count, moments} = state.alerts.at(-1);
              return [state.alerts.length - rows, count - last.count, moments.at(-1).id];
            })()"""
        )
        self.assertEqual(merged, [0, 1, "1-1"])  # the same words within a minute
        self.browser.until("cards[0].lines[0].points[0] < state.newest - 1750000")
        self.assertEqual(self.browser.js("location.hash"), "#window=1800")
        self.assertTrue(
            eventually(lambda: server.broadcaster.snapshot()["connections"] == 1),
        )
        at = self.browser.js("state.newest - 1200000")
        self.browser.tab()
        self.go(f"{server.url}#window=1800&from={at - 60_000}&to={at + 60_000}&at={at}")
        self.browser.until(f"cursorTime(shown) === {at} && holds(shown)")
        self.browser.js("document.querySelector('#live').click()")
        chosen = "document.querySelector('#windows [aria-pressed=true]').innerText"
        self.browser.until(f"{chosen} === '30 min'")
        self.assertFalse(self.browser.js("holding"))
        moments = "link: shifted(link, -steady())"
        # What was asked for goes before other things than this tab has now; a fault ends it, too.
        self.ends_the_past(f"adopt({{state, {moments}}})")
        self.ends_the_past(f"hear({{kind: 'connection', after: state.lastEventId, {moments}}})")

    def ends_the_past(self, call):
        """The page gives up the stream that brings an older stretch."""
        self.browser.js(
            f"window.ended = false, past = {{close() {{ window.ended = true; }}}}, {call}, 0"
        )
        self.assertTrue(self.browser.js("window.ended && past === null"))

    def test_older_stretches_leave_the_stream_its_connection(self):
        """One tab at a time opens a second stream, and a fault ends it: a retry goes before."""
        server = self.live(history=600.0)
        self.go(server.url)
        self.browser.js(  # as another tab would
            "navigator.locks.request(`${NAME} older`,"
            "() => new Promise(given => { window.give = given; })), 0"
        )
        self.browser.until("!!window.give")
        self.browser.js("document.querySelector('#windows').lastChild.click()")
        for _ in range(2):
            self.browser.js("window.before = beatAt")
            self.browser.until("beatAt > before")
        self.assertTrue(self.browser.js("past === null && state.since > state.newest - 400_000"))
        self.assertEqual(server.status()["connections"], 1)
        self.browser.js("give()")
        self.browser.until("state.since < state.newest - 550_000 && !past")
        self.browser.js(
            "navigator.locks.query().then(({held}) => { window.held = held.map(l => l.name); }), 0"
        )
        self.browser.until("window.held && !held.some(name => name.endsWith('older'))")
        self.ends_the_past("fail()")

    def test_what_is_published_between_ticks(self):
        """It is seen at once, however long the interval, and an alert leads to its own moment."""
        server = self.live(sources=[], interval=60.0)
        self.go(server.url)
        server.publish(metric("volts", 3, "V"))
        self.browser.until("cards[0]?.lines[0]?.points.length === 2 && !frame")
        server.publish(metric("volts", 6, "V"))
        self.browser.until(
            "document.querySelector('.range').innerText.startsWith('max 6') && !frame"
        )
        server.publish(alert("error", "It is six", "volts"))
        self.browser.until("document.querySelector('#log time') && !frame")
        self.browser.js("document.querySelector('#log time').click()")
        self.browser.until("cursorTime(shown) === state.alerts[0].time && !frame")
        self.assertEqual(self.browser.js("cards[0].alerts.length"), 1)
        self.assertTrue(self.browser.js("view.zoom === null"))  # it is where the axis ends

    def test_an_older_stretch_over_a_slow_line(self):
        """It may take longer than a silence; but where it fails, tries are ever further apart."""
        server = self.hurried(
            self.live(history=60.0),
            ("const HISTORY_MS = 300_000;", "const HISTORY_MS = 10_000;"),
            ("MIN_SILENCE_MS = 5000", "MIN_SILENCE_MS = 500"),
            ("BEAT_MS = 1000", "BEAT_MS = 50"),
            ("FIRST_RETRY_MS = 1000", "FIRST_RETRY_MS = 300"),
        )
        relay = Relay({"/": server.server_address[:2]}, 200_000)
        self.addCleanup(relay.close)
        self.go(f"{relay.url}/")
        self.browser.js("document.querySelector('#windows').lastChild.click()")
        self.browser.until("past !== null")
        self.browser.until("state.since < state.newest - 55_000 && !past")
        status = server.status()
        self.assertEqual(status["connections"] + sum(status["ended"].values()), 2)
        self.browser.js(
            "window.tries = [],"
            "(real => { EventSource = class extends real { constructor(url) {"
            " tries.push(steady()); super(url + '&history=bad'); } }; })(EventSource),"
            "state.since = state.newest - 5000"
        )
        self.browser.until("tries.length === 3")
        first, second, third = self.browser.js("tries")
        self.assertGreater(second - first, 290)
        self.assertGreater(third - second, 590)
        self.browser.state("Live")

    def test_an_alert_is_on_its_chart(self):
        """Its mark has the level's colour; choosing it, in the list or there, shows its moment
        everywhere."""
        server = self.live()
        self.go(server.url)
        server.publish(alert("error", "on fire", "load_average"))
        server.publish(alert("warning", "smoke", "load_average"))  # at one place the worse stands
        smoke = "state.alerts.find(({message}) => message === 'smoke')"
        self.browser.until(f"state.newest > {smoke}?.time && !frame")
        marked = "cards.filter(card => card.alerts.some(({alert}) => alert.message === 'on fire'))"
        self.assertEqual(self.browser.js(f"{marked}.map(({{title}}) => title)"), ["Load"])
        x, y, red = self.browser.js(
            f"(() => {{ const card = {self.LOAD};"
            "const {canvas} = card, plot = plotter(card, shown, plotBox(card));"
            "const {time} = alertsOn(card, shown).find(({alert}) => alert.message === 'on fire');"
            "const {px, py, size} = markAt(card, plot, time), from = "
            "canvas.getBoundingClientRect();"
            f"const red = {PIXELS}(card, 'error', px - size / 2, py - size / 2, size, size);"
            "return [from.x + px, from.y + py, red]; })()"
        )
        self.assertGreater(red, 20)
        self.mouse("Pressed", x, y, button="left", buttons=1, clickCount=1)
        self.mouse("Released", x, y, button="left", clickCount=1)
        self.mouse("Moved", 2, 2)
        self.browser.until("document.querySelector('.chosen')?.innerText.includes('on fire')")
        self.browser.until("cards.every(({readout}) => readout)")
        self.assertIn("on fire", " ".join(self.browser.js(f"{self.LOAD}.readout.words")))
        self.browser.key("Escape", 27)
        self.browser.js("document.querySelector('#windows button').click()")
        time = self.browser.js(
            "state.alerts.findLast(({time}) => time < state.newest - 120000).time"
        )
        self.browser.js(
            f"choose(state.alerts.find(({{time}}) => time === {time})), window.scrollTo(0, 0), 0"
        )
        self.browser.until(
            f"cursorTime(shown) === {time} && cards.every(({{span}}) => span === 60000)"
        )
        self.browser.until("document.querySelectorAll('.chosen [aria-pressed=true]').length === 1")
        self.browser.js("document.querySelector('#live').click()")
        self.browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=390,
            height=600,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.browser.js("document.querySelector('#reach').click()")
        self.browser.until("scrollY > 500")
        button = (
            "[...document.querySelectorAll('#rows li')].find(({innerText}) => "
            "/fire/.test(innerText)).moment"
        )
        self.browser.js(f"{button}.focus()")
        self.browser.key(" ", 32)
        self.browser.until(
            "(({top, bottom}) => top >= 0 && bottom <= innerHeight)"
            f"({self.LOAD}.element.getBoundingClientRect())"
        )

    def test_lowest_and_highest_have_their_times(self):
        """Beside the number, and in the table, which lists real points and the peak; nothing
        behind it has the focus."""
        self.go(self.live(history=120.0).url)
        self.browser.until("zoned !== null")  # the first moments are written without fractions
        self.browser.js("document.querySelector('.toggle').click()")
        self.browser.until("document.querySelectorAll('.table tbody tr').length > 20")
        self.assertEqual(self.browser.js("document.querySelector('.toggle').ariaExpanded"), "true")
        times = self.browser.js("[...document.querySelectorAll('.table tbody tr')].map(r => r.key)")
        self.assertEqual(times, sorted(times, reverse=True))
        x, y = self.place("Memory")  # the table lies over the first chart
        self.mouse("Moved", x, y)
        self.browser.until("view.frozen && !frame")
        first, last, words, rows = self.browser.js(  # at once, for the frame that was drawn
            "[shown.from, shown.end, document.querySelector('.card .range').innerText,"
            "[...document.querySelectorAll('.table tbody tr')].map(({cells}) => "
            "[...cells].map(c => c.innerText))]"
        )
        points = [(value, time) for time, value in self.points() if first <= time <= last]
        high, low = max(points), min(points, key=lambda point: (point[0], -point[1]))
        low = min(point for point in points if point[0] == low[0])
        for word, (value, moment) in (("max", high), ("min", low)):
            self.assertIn(
                f"{word} {value:.1f}, {self.browser.js(f'clock.format({moment})')}", words
            )
        moments = self.browser.js(f"{[time for _, time in points]}.map(momentInWords)")
        known = {(at, f"{value:.1f} %") for at, (value, _) in zip(moments, points)}
        self.assertLessEqual({tuple(row) for row in rows}, known)
        self.assertIn(f"{high[0]:.1f} %", {value for _, value in rows})
        self.assertIn(f"{low[0]:.1f} %", {value for _, value in rows})
        self.browser.js("document.querySelector('.toggle').focus()")
        self.browser.js("document.querySelector('.card canvas').focus()")
        self.assertEqual(self.browser.js("document.activeElement.tagName"), "BUTTON")
        self.browser.js("document.querySelector('.toggle').click()")
        self.browser.js("document.querySelector('.card canvas').focus()")
        self.assertEqual(self.browser.js("document.activeElement.tagName"), "CANVAS")

    def test_many_alerts_leave_the_curve_in_sight(self):
        """There are no more marks than fit, and so many have no lines."""

        def act(tick):
            yield metric("jobs", tick // 1000 % 7)
            yield alert("warning", f"Job {tick // 1000} is late", "jobs")

        self.go(self.live(sources=[Drawn(act)], interval=1.0).url)
        lines = (
            "(card => { const {top, bottom} = plotBox(card);"
            f"return {PIXELS}(card, 'warning', 0, top, card.width, bottom - top - 99); }})"
            "(cards[0])"
        )
        fit = "(({alerts, em, width}) => alerts.length <= width / em)(cards[0])"
        for width in (390, 1440):
            self.size(width)
            self.browser.until(f"cards[0]?.alerts.length > 15 && {fit} && !frame && {lines} === 0")

    def test_a_break_has_its_name(self):
        """While it lasts a gap says since when; events that are gone, and a restart, are
        labelled."""
        server = self.live(history=2.0)
        self.go(server.url)
        self.browser.js("document.querySelector('#windows button').click()")
        port = server.server_port
        server.__exit__(None, None, None)
        self.browser.state("Reconnecting")
        written = "cards.map(({written}) => written.map(({string}) => string).join()).join()"
        self.browser.until(f"{written}.includes('no data since ' + clock.format(state.newest))")
        self.browser.until("steady() - link.heardAt > 2000", 20)

        def shaded(place):
            return self.browser.js(
                "cards.map(card => { const {x, top, right} = plotter(card, shown, plotBox(card));"
                f"return {DRAWN}(card, {place}, top + 3); }})"
            )

        self.assertNotIn(False, shaded("right - 3"))
        self.live(port, history=1.0)
        self.browser.js("retryNow(), 0")
        self.browser.state("Live")
        for label in ("events lost", "restart"):
            self.browser.until(
                f"cards.every(({{written}}) => written.some(({{string}}) => string === '{label}'))"
            )
        lost = "(({from, to}) => x((from + to) / 2))(state.marks.find(mark => mark.to))"
        self.assertNotIn(False, shaded(lost))
        ticks = self.browser.js(
            "cards.map(card => { const {x, top} = plotter(card, shown, plotBox(card));"
            "const end = x(state.marks.find(mark => mark.to).to);"
            f"return {PIXELS}(card, 'quiet', Math.floor(end) - 1, top, 3, 40); }})"
        )
        self.assertGreater(min(ticks), 3, ticks)
        self.assertNotIn("no data since", self.browser.js(written))


class TheAlerts(InABrowser):
    """What happened: the list of alerts, and the events as they came."""

    def test_alerts_alone_have_the_room(self):
        """Without any metric the list is wide, whatever level is chosen; beside cards it is not."""
        server = self.live(sources=[])
        self.go(server.url)
        wide = "document.querySelector('.alerts').offsetWidth > innerWidth / 2"
        self.assertFalse(self.browser.js(wide))
        server.publish(alert("error", "on fire"))
        self.browser.until(wide)
        self.browser.js("document.querySelector('#filter > :last-child').click()")
        self.browser.until("$('none').checkVisibility()")
        self.assertTrue(self.browser.js(wide))
        server.publish(metric("smoke", 1))
        self.browser.until(f"cards.length === 1 && !({wide})")

    def test_a_level_by_its_word_and_its_count(self):
        """A level that the page does not know has its own name, and a filter; counts say when some
        are gone."""
        server = self.live(sources=[Counting()])
        self.go(f"{server.url}#level=error")
        self.browser.until(
            "document.querySelector('#none').innerText === 'No alerts of this level'"
        )
        self.browser.js("document.querySelector('#filter [value=\"\"]').click()")
        self.browser.until("document.querySelector('#none').innerText === 'No alerts'")
        self.assertEqual(self.browser.js("location.hash"), "")
        for level in ("critical", "toString"):
            server.publish(Event("alert", {"level": level, "message": f"said as {level}"}))
        for level in sse.LEVELS:
            server.publish(alert(level, f"said as {level}"))
        count = len(sse.LEVELS) + 2
        self.browser.until(f"document.querySelectorAll('#rows li').length === {count}")
        said = self.browser.js(
            "[...document.querySelectorAll('#rows li')].map(row => "
            "[row.querySelector('p').innerText,"
            "row.querySelector('b').innerText, row.querySelector('.shape').getAttribute('d'),"
            "getComputedStyle(row.querySelector('.icon')).fill, row.querySelector('path + "
            "path').getAttribute('d')])"
        )
        words = {message.removeprefix("said as "): word for message, word, *_ in said}
        known = {level: level.capitalize() for level in sse.LEVELS}
        self.assertEqual(
            words,
            {"critical": "critical", "toString": "toString"} | known,
            "a level stands in LEVELS of sse_dashboard.py and in LEVELS of index.html",
        )
        shapes, colours, signs = (set(look) for look in list(zip(*said))[2:])
        self.assertEqual(len(signs), count - 1)  # the two that it does not know look alike
        self.assertEqual(len(colours), count - 1)
        self.assertGreater(len(shapes), 3)
        filters = (
            "[...document.querySelectorAll('#filter button')]"
            ".map(button => button.innerText.trim().split(/\\s+/))"
        )
        every, *each = self.browser.js(filters)
        self.assertEqual(every, [f"{count}", "All"])
        self.assertEqual(each[-2:], [["1", "critical"], ["1", "toString"]])
        self.assertEqual(sorted(each[:-2]), sorted(["1", word] for word in known.values()))
        self.browser.js("document.querySelector('#filter [value=critical]').click()")
        self.browser.until(
            "document.querySelectorAll('#rows li').length === 1"
            " && location.hash === '#level=critical'"
        )
        self.assertIn("said as critical", self.browser.text("#rows"))
        self.assertFalse(self.shown("#none") or self.shown("#older"))
        pressed = "document.querySelectorAll('#filter [aria-pressed=true]')"
        self.assertEqual(self.browser.js(f"[...{pressed}].map(b => b.value)"), ["critical"])
        self.browser.js("document.querySelector('#filter [value=\"\"]').click()")
        self.browser.until(f"document.querySelectorAll('#rows li').length === {count}")
        log = "(({role, ariaLive}) => [role, ariaLive])(document.querySelector('#log'))"
        self.assertEqual(self.browser.js(log), ["log", "off"])  # who chose it is not told it anew
        levels = [sse.LEVELS[n % len(sse.LEVELS)] for n in range(205)]
        for n, level in enumerate(levels):
            server.publish(alert(level, f"number {n}"))
        self.browser.until("state.alerts[0].message === 'number 204' && !frame")
        self.assertEqual(self.browser.js("state.alerts.length"), 200)
        held = collections.Counter(known[level] for level in levels[-200:])
        self.assertEqual(
            sorted(self.browser.js(filters)),
            sorted([["200+", "All"], *([f"{held[word]}+", word] for word in held)]),
        )
        self.browser.js("document.querySelector('#filter [value=warning]').click()")
        self.browser.until(
            "[...document.querySelectorAll('#rows li')].every(row => "
            "row.innerText.includes('Warning'))"
        )
        self.assertEqual(self.browser.js("document.querySelectorAll('#rows li').length"), 12)
        self.assertTrue(self.shown("#older"))
        self.browser.js(
            "(older => { older.focus(), older.click(); })(document.querySelector('#older'))"
        )
        self.browser.until("document.querySelectorAll('#rows li').length === 24")
        self.assertEqual(self.browser.js("document.activeElement.id"), "older")
        for _ in range(16):
            self.browser.js("document.querySelector('#older').click()")
        self.browser.until("document.querySelector('#older').hidden")
        self.assertEqual(self.browser.js("document.activeElement.id"), "log")

    def test_the_same_again_is_counted(self):
        """Within a minute it is one row with its count; a minute later it is another."""
        with Puppet() as server:
            self.go(server.url, state="")
            server.opened()
            now = 1_800_000_000_000
            server.status(now)
            fields = {"level": "warning", "message": "the disk is slow"}
            for number, after in enumerate((0, 1, 59, 118, 180), 1):
                server.say("alert", now + after * 1000, number, **fields)
            server.say("alert", now + 180_000, 5, **fields)  # the very same event
            server.say("alert", now + 181_000, 6, level="info", message="the disk is slow")
            server.say("alert", now + 182_000, 7, metric="disk", **fields)
            self.browser.until("document.querySelectorAll('#rows li').length === 4")
            counts = self.browser.js(
                "[...document.querySelectorAll('#rows li')].map(row => row.count.innerText)"
            )
            self.assertEqual(counts, ["", "", "", "× 4"])
            shown = "document.querySelector('#rows li:last-child time').innerText"
            self.assertEqual(*self.browser.js(f"[{shown}, clock.format({now + 118_000})]"))

    def test_a_long_message_opens(self):
        """It is cut at two lines; a button, which the keyboard reaches, opens it. A short one has
        none."""
        server = self.live(sources=[Counting()])
        self.go(server.url)
        server.publish(alert("error", "word " * 100))
        server.publish(alert("error", "short"))
        self.browser.until("document.querySelectorAll('#rows li').length === 2")
        height = "document.querySelector('#rows li + li p').clientHeight"
        self.browser.until(
            "document.querySelector('#rows li + li .more')?.checkVisibility() === true"
        )
        self.assertEqual(self.browser.js("document.querySelector('#log').ariaLive"), "polite")
        self.assertFalse(self.shown("#rows li:first-child .more"))
        cut = self.browser.js(height)
        self.assertLessEqual(cut, 48)
        self.browser.js("document.querySelector('#rows li + li .more').focus()")
        self.browser.key(" ", 32)
        self.browser.until(f"{height} > {cut} * 2")
        self.assertEqual(
            self.browser.js("document.querySelector('#rows li + li .more').ariaExpanded"), "true"
        )

    def test_a_list_that_is_read_stands_still(self):
        """Under a pointer, with the focus in it, or scrolled; it says how many are new, and goes
        on."""
        server = self.live(sources=[Counting()])
        self.go(server.url)
        self.browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=1440,
            height=500,
            deviceScaleFactor=1,
            mobile=False,
        )
        for n in range(12):
            server.publish(alert("info", f"old {n}"))
        first = "document.querySelector('#rows p').innerText"
        self.browser.until(f"{first} === 'old 11'")
        left, top = self.browser.js(
            "(({x, y}) => [x + 9, y + 9])(document.querySelector('#log').getBoundingClientRect())"
        )

        def mouse(x, y):
            self.browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

        for name, begin, end in (
            ("pointer", lambda: mouse(left, top), lambda: mouse(1, 1)),
            (
                "focus",
                lambda: (
                    self.browser.js("document.querySelector('#filter button:last-child').focus()"),
                    self.browser.key("Tab", 9),
                ),
                lambda: self.browser.js("document.activeElement.blur()"),
            ),
            (
                "scroll",
                lambda: self.browser.js("document.querySelector('#log').scrollTop = 60"),
                lambda: self.browser.js("document.querySelector('#fresh').click()"),
            ),
        ):
            with self.subTest(name):
                before = self.browser.js(first)
                begin()
                self.browser.until("view.still")
                server.publish(alert("info", f"new by {name}"))
                server.publish(alert("info", f"newer by {name}"))
                self.browser.until("document.querySelector('#fresh').innerText === '2 new'")
                self.assertTrue(self.shown("#fresh"))
                self.assertEqual(self.browser.js(first), before)
                end()
                self.browser.until(f"{first} === 'newer by {name}'")
                self.assertTrue(self.browser.js("document.querySelector('#fresh').hidden"))
        self.assertEqual(self.browser.js("document.querySelector('#log').scrollTop"), 0)

    def test_a_pointer_that_rests_where_alerts_come(self):
        """The first alert of an empty list is shown under it, and so is the history of a page that
        opens under it."""
        server = self.live(sources=[Counting()])
        self.go(server.url)
        x, y = self.browser.js(
            "(({x, y}) => [x + 9, y + 9])(document.querySelector('#log').getBoundingClientRect())"
        )
        self.browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.browser.until("view.reading.size === 1")
        server.publish(alert("info", "first"))
        self.browser.until("document.querySelector('#rows').innerText.includes('first')")
        server.publish(alert("info", "second"))
        self.browser.until("document.querySelector('#fresh').innerText === '1 new'")
        with Puppet(("GREETING_MS = 1000", "GREETING_MS = 60_000")) as server:
            self.go(server.url, state="")
            server.opened()
            self.browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y + 1)
            self.browser.until("view.reading.size === 1")
            now = 1_800_000_000_000
            server.status(now)
            for number, message in enumerate(("old", "older than the page", "the last"), 1):
                server.say("alert", now - 90_000, number, level="info", message=message)
                self.browser.until(
                    f"document.querySelector('#rows').innerText.includes('{message}')"
                )

    def test_the_last_alert_stays(self):
        """Though the history of the metrics goes on without it, and the page with it."""
        with Puppet(("HISTORY_MS = 300_000", "HISTORY_MS = 5000")) as server:
            self.go(server.url, state="")
            server.opened()
            now = 1_800_000_000_000
            server.say("alert", now, 1, level="error", message="the only one")
            for second in range(1, 60):
                server.say("metric", now + second * 1000, 1, name="load", value=1, unit="")
                server.status(now + second * 1000)
            self.browser.until(f"state.newest === {now + 59_000}")
            self.assertLess(len(self.points("load")), 20)
            self.browser.until("/the only one/.test(document.querySelector('#rows').innerText)")

    def test_the_raw_events_and_the_curl_line(self):
        """Opened, the panel is full: the last 30 events as they came, those of a program's own
        types too."""
        with Puppet() as server:
            self.go(server.url, state="")
            server.opened()
            now = 1_800_000_000_000
            server.say("panels", now, panels=[], types=["deploy"])
            server.say("deploy", now, 1, version="1.2")
            server.say("panels", now, panels=[], types=["deploy", "rollback", "error"])
            server.say("error", now, 2, code=7)
            server.say("rollback", now, 3, version="1.1")
            for number in range(4, 29):
                server.say("metric", now, number, name=f"m{number}", value=1, unit="")
            self.browser.until("state.wire.length === 30")
            written = self.browser.js("document.querySelector('#raw').textContent")
            self.assertEqual(written.strip(), "")
            self.browser.js(
                "(document.querySelector('#wire').addEventListener('toggle', () => {"
                "window.asked = frame; }), document.querySelector('#wire > summary').click())"
            )
            self.browser.until("document.querySelector('#raw').innerText.includes('event: metric')")
            self.assertGreater(self.browser.js("asked"), 0)  # at once, and not at the next event
            raw = self.browser.text("#raw")
            self.assertEqual(raw.count("event: "), 30)
            said = json.dumps(
                {"type": "rollback", "version": "1.1", "timestamp": sse.timestamp(now)}
            )
            self.assertIn(f"event: rollback\ndata: {said}\nid: {now}-3\n", raw)
            self.assertIn("event: deploy", raw)
            self.assertLess(raw.index(f"id: {now}-28"), raw.index("event: deploy"))
            self.assertIn("event: error", raw)
            self.assertEqual(self.browser.js("link.tries"), 0)  # which is no error of the stream
            self.assertEqual(self.browser.text("#curl"), f"curl -N {server.url}api/events/all")
            label = "document.querySelector('#raw').role + document.querySelector('#raw').ariaLabel"
            self.assertEqual(self.browser.js(label), "regionRaw events")
            self.assertEqual(self.browser.js("document.querySelectorAll('.card').length"), 25)


class TheConnection(InABrowser):
    """What the page says of its connection, and what the world does to it."""

    WORDS = """
        window.said = [];
        new MutationObserver(() => {
          const word = document.querySelector('#state')?.textContent;
          if (word && word !== said.at(-1)) said.push(word);
        }).observe(document, {subtree: true, childList: true, characterData: true});
    """
    CHANCE = "Math.random = () => .1;"  # or a wait may be long
    CLOCK = """
        window.ahead = 0;
        const RealDate = Date;
        window.Date = class extends RealDate {
          constructor(...given) { given.length ? super(...given) : super(Date.now()); }
          static now() { return RealDate.now() + window.ahead; }
        };
    """

    def relay(self, servers, rate=0):
        addresses = {prefix: server.server_address[:2] for prefix, server in servers.items()}
        relay = Relay(addresses, rate)
        self.addCleanup(relay.close)
        return relay

    def ticks(self, count):
        """Waits until the server has said so many more times that it lives."""
        time = self.browser.js("state.status.time")
        self.browser.until(f"state.status.time >= {time} + {count} * state.interval")

    def connections(self, server, count, seconds=DEADLINE):
        """Waits until the server has so many open streams."""
        self.assertTrue(
            eventually(lambda: server.status()["connections"] == count, seconds), server.status()
        )

    def test_what_comes_wakes_the_page_and_no_timer(self):
        """While ticks come, the page has no timer of its own between them; when they stop, it
        has one."""
        self.before(
            "window.beats = 0;"
            "setTimeout = (real => (task, ms) => real("
            "() => { window.beats += task.name === 'beat'; task(); }, ms))(setTimeout);"
        )
        server = self.live()
        self.go(server.url)
        self.browser.js("window.beats = 0, window.before = beatAt")
        self.ticks(5)
        self.assertEqual(self.browser.js("beats"), 0)
        self.assertGreater(self.browser.js("beatAt - before"), 1000)
        server.__exit__(None, None, None)
        self.browser.state("Reconnecting")
        self.browser.until("beats > 1")

    def test_counters_move_every_second(self):
        """A second after the last event, or after the last beat where there was none since; where
        ticks come each second, a little later, so that they come first."""
        self.go(self.live().url)
        waits = self.browser.js(
            "(real => [[2000, 300], [2000, 1200], [1000, 300], [1000, 1200]].map("
            "([interval, ago]) => {"
            "  let wait;"
            "  Object.assign(state, {interval}), link.heardAt = steady() - ago;"
            "  setTimeout = (task, ms) => { wait = ms; return real(task, ms); };"
            "  beat();"
            "  setTimeout = real;"
            "  return Math.round(wait / 100); }))(setTimeout)"
        )
        self.assertEqual(waits, [7, 10, 8, 10])

    def test_a_wall_clock_that_is_set(self):
        """An hour forward or back, live or waiting: no word, no age and no wait changes for it."""
        self.before(self.WORDS, self.CLOCK, self.CHANCE)
        server = self.live()
        self.go(server.url)
        server.publish(alert("error", "a moment ago"))
        self.browser.until("state.alerts[0]?.message === 'a moment ago'")
        self.browser.js("said = ['Live']")
        for ahead in (3_600_000, -3_600_000, 0):
            self.browser.js(f"window.ahead = {ahead}")
            self.ticks(2)
            self.browser.until("!frame")
            self.assertIn(" – ", self.browser.js("document.title"))
            self.assertRegex(self.browser.text("#uptime"), "00:0.:..")
            self.assertLess(self.browser.js("Math.abs(shown.end - state.newest)"), 60_000)
        self.assertEqual(self.browser.js("said"), ["Live"])
        port = server.server_port
        server.__exit__(None, None, None)
        self.browser.state("Reconnecting")
        for ahead in (3_600_000, -3_600_000):
            self.browser.js(f"window.ahead = {ahead}, invalidate()")
            self.browser.until(
                "!frame && /next try in \\d/.test(document.querySelector('#detail').innerText)"
            )
            self.assertLess(self.browser.js("Math.abs(shown.end - state.newest)"), 60_000)
            numbers = re.findall(r"\d+", self.browser.text("#detail"))
            self.assertLess(max(map(int, numbers)), 30)
            self.browser.until(f"wait >= {2000 if ahead > 0 else 4000}")  # it tries on
        self.live(port)
        self.browser.state("Live")
        self.check_against_simulation()

    def test_a_machine_that_slept(self):
        """Its stream said nothing meanwhile, and is replaced at once: it may be dead. A silence of
        less than three of the server's intervals says nothing."""
        self.before(self.CHANCE)
        puppet = self.puppet()
        self.go(puppet.url, "")
        puppet.opened()
        now = time.time_ns() // 1_000_000
        puppet.status(now, interval=60.0)
        puppet.say("metric", now, 1, name="load", value=1, unit="")
        self.browser.state("Live")
        sleep = "performance.now = (now => () => now.call(performance) + {})(performance.now)"
        self.assertEqual(
            self.browser.js(f"({sleep.format(1e5)}, beat(), [connectionState(), link.tries])"),
            ["live", 0],
        )
        self.browser.until("document.querySelector('#uptime').innerText.startsWith('00:03:2')")
        self.browser.js(f"{sleep.format(3.6e6)}, 0")
        puppet.opened()  # long before it is silent for three intervals

    def test_two_dashboards_on_one_origin(self):
        """Under `/a/` and `/b/` they share nothing; two tabs of one share its stream."""
        servers = {
            f"/{name}/": self.live(sources=[Simulation(seed, 0.25)])
            for name, seed in zip("ab", (0, 1))
        }
        relay = self.relay(servers)
        self.go(f"{relay.url}/a/")
        handles = [self.browser.call("GET", "/window")]
        for path in ("/b/", "/a/"):
            handles.append(self.browser.tab())
            self.go(relay.url + path)
        for handle, seed, holding in zip(handles, (0, 1, 0), (True, True, False)):
            self.browser.switch(handle)
            self.ticks(2)
            self.assertEqual(self.browser.js("holding"), holding)
            self.assertIn(
                "/{}/".format("ab"[seed]), self.browser.js("THEME")
            )  # a choice of its own
            simulation, points = Simulation(seed, 0.25), self.points()
            self.assertGreater(len(points), 200)
            for tick, value in points:
                self.assertEqual(value, simulation.events_at(tick)[0].fields["value"])
        for server in servers.values():
            self.connections(server, 1)

    def test_a_page_with_the_line_ends_of_windows(self):
        """It is the same page to a browser, and the policy's hashes are those of what it parses."""
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        shutil.copy(HERE / "sse_dashboard.py", folder)
        page = (HERE / "index.html").read_bytes().replace(b"\n", b"\r\n")
        (folder / "index.html").write_bytes(page)
        with Command("--interval", "0.25", script=folder / "sse_dashboard.py") as command:
            self.go(f"http://127.0.0.1:{command.address[1]}/")
            self.check_against_simulation()

    def test_back_out_of_the_cache(self):
        """In WebKit's order, first `visibilitychange` and then `pageshow`, four tabs end with one
        stream. Their ages and waits agree, though each tab's steady clock has another zero, and
        "Retry now" works in each."""
        server = self.live()
        self.go(server.url)
        for zero in (1e6, 2e6, 3e6):
            self.browser.tab()
            self.browser.cdp(
                "Page.addScriptToEvaluateOnNewDocument",
                source=f"performance.now = (now => () => now.call(performance) + {zero})"
                "(performance.now);",
            )
            self.go(server.url)
        handles = self.browser.call("GET", "/window/handles")

        def everywhere(expression):
            values = []
            for handle in handles:
                self.browser.switch(handle)
                values.append(self.browser.js(expression))
            return values

        everywhere("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
        self.connections(server, 0)
        everywhere(
            "document.dispatchEvent(new Event('visibilitychange')),"
            "dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
        )
        everywhere("new Promise(done => setTimeout(done))")
        self.connections(server, 1, 5)  # before a lock could be taken from one that is silent
        for handle in handles:
            self.browser.switch(handle)
            self.browser.state("Live")
            self.ticks(1)
            self.check_against_simulation()
        self.assertEqual(sum(everywhere("holding")), 1)
        self.connections(server, 1)
        everywhere("(wait = 30_000, liveSince = steady(), Math.random = () => 1)")
        port, last = server.server_port, time.monotonic()
        server.__exit__(None, None, None)
        for handle in handles:
            self.browser.switch(handle)
            self.browser.state("Reconnecting", seconds=2.5)  # before it could be Delayed
            silence = self.browser.js("steady() - link.heardAt") / 1000
            self.assertAlmostEqual(silence, time.monotonic() - last, delta=5)
            left = self.browser.js("link.retryAt === Infinity ? 0 : link.retryAt - steady()")
            self.assertLessEqual(abs(left), 30_000)
        follower = everywhere("holding").index(False)
        self.browser.switch(handles[follower])
        opened = "(link.retryAt = 0, beat(), source)"  # it leaves the tries to the holder
        self.assertIsNone(self.browser.js(opened))
        server = self.live(port)
        self.browser.js("document.querySelector('#retry').click()")
        self.connections(server, 1)
        for handle in handles:
            self.browser.switch(handle)
            self.browser.state("Live")

    def test_a_holder_that_the_browser_froze_or_that_hangs(self):
        """A frozen tab hands its stream over; the stream of one that hangs is taken from it."""
        server = self.hurried(
            self.live(),
            ("MIN_SILENCE_MS = 5000", "MIN_SILENCE_MS = 2500"),
            ("PATIENCE_MS = 2000 + 1000", "PATIENCE_MS = 500 + 100"),
        )
        self.go(server.url)
        first = self.browser.call("GET", "/window")
        second = self.browser.tab()
        self.go(server.url)
        self.browser.js(  # this tab slept, so it heard nothing: no reason to take the stream
            "(now => { performance.now = () => now.call(performance) + 3.6e6;"
            "beat(); performance.now = now; })(performance.now)"
        )
        self.browser.js(  # nor one that missed some
            "bus.onmessage = (hear => ({data}) => {"
            "if (window.deaf || !data.events?.some(({type}) => type === 'metric'))"
            " return hear({data});"
            "window.deaf = true; })(bus.onmessage), 0"
        )
        self.browser.until("window.deaf")
        self.ticks(2)
        self.check_against_simulation()
        self.assertFalse(self.browser.js("holding"))

        def freeze(handle, other, seconds=DEADLINE):
            self.browser.switch(handle)
            self.assertTrue(self.browser.js("holding"))
            self.browser.cdp("Page.setWebLifecycleState", state="frozen")
            self.browser.switch(other)
            self.browser.until("holding && source !== null", seconds)
            self.ticks(2)
            self.check_against_simulation()
            self.browser.switch(handle)
            self.browser.cdp("Page.setWebLifecycleState", state="active")
            self.browser.until("!holding")
            self.browser.state("Live")
            self.check_against_simulation()
            self.connections(server, 1)

        freeze(first, second, 2.5)  # before it is silent for too long
        self.browser.switch(second)
        self.browser.js("document.removeEventListener('freeze', stop)")  # it says nothing
        freeze(second, first)

    def test_before_the_first_event(self):
        """The page says that it waits, with no card, no zero and no button; a greeting is none, and
        no sign that data stopped."""
        puppet = self.puppet(("const GREETING_MS = 1000;", "const GREETING_MS = 100_000;"))
        self.go(puppet.url, "Connecting")
        self.browser.until("!frame && drawnAt > 0")
        self.assertEqual(self.browser.text("#detail"), "waiting for data")
        self.assertEqual(self.browser.text("#waiting"), "Waiting for the first event")
        self.assertEqual(self.browser.text("#cards"), "")
        self.assertEqual(self.browser.text(".facts b"), "–")
        self.assertFalse(self.shown("#retry"))
        puppet.opened()
        puppet.status(time.time_ns() // 1_000_000)
        self.browser.until("state.status && !frame")
        self.assertEqual(self.browser.text("#state"), "Connecting")
        self.assertEqual(self.browser.text("#detail"), "waiting for data")

    def test_history_over_a_slow_line(self):
        """While what comes is old the page is catching up, and says how far; it is not Live."""
        self.before(self.WORDS)
        server = self.live()
        relay = self.relay({"/": server}, rate=4096)
        self.go(f"{relay.url}/", "Catching up")
        self.assertRegex(self.browser.text("#detail"), r"^\d+ (s|min) behind$")
        relay.rate = 0
        self.browser.state("Live")
        self.assertEqual(self.browser.js("said"), ["Connecting", "Catching up", "Live"])
        self.check_against_simulation()
        puppet = self.puppet()
        self.go(puppet.url, "")
        puppet.opened()
        now = time.time_ns() // 1_000_000
        puppet.status(now)
        puppet.status(now)
        self.browser.state("Live")
        puppet.status(now - 20_000)  # long on its way, so it says nothing of the server's clock
        self.browser.state("Catching up")

    def test_what_is_a_restart(self):
        """A new instance that began after the last word of the old one; no clock that jumps, and no
        second server. A reading of an hour ago that comes now is shown as what it is."""
        puppet = self.puppet()
        self.go(puppet.url, "")
        puppet.opened()
        now = time.time_ns() // 1_000_000
        steps = [  # server time, instance, uptime, and the restarts that are marked then
            (now, "one", 100, 0),
            (now + 1000, "one", 101, 0),
            (now + 2000, "one", 0.5, 0),  # its clocks jump
            (now + 3000, "two", 500, 0),  # a second server behind a load balancer
            (now + 4000, "one", 4, 0),
            (now + 9000, "three", 1, 1),
            (now + 10000, "three", 2, 1),
        ]
        for number, (moment, instance, uptime, marks) in enumerate(steps, 1):
            puppet.say("metric", moment, number, name="load", value=number, unit="")
            puppet.status(moment, instance, uptime)
            self.browser.until(f"state.status?.time === {moment}")
            self.assertEqual(
                self.browser.js("state.marks.map(mark => [mark.label, mark.from])"),
                [["restart", moment - uptime * 1000]] * marks
                if moment == now + 9000
                else [["restart", now + 8000]] * marks,
            )

    def test_a_reset_in_an_open_stream(self):
        """The stream goes on. What comes again is there once, and what is missing is said."""
        self.before(self.WORDS)
        puppet = self.puppet()
        now = time.time_ns() // 1_000_000

        def tell(*seconds, times=1, with_metric=True):
            for second in seconds:
                moment = now + 1000 * second
                puppet.say("alert", moment, 1, level="info", message=f"at {second}")
                puppet.say("alert", moment, 2, level="info", message="a knock")
                if with_metric:
                    puppet.say("metric", moment, 3, name="load", value=second * times, unit="")
                puppet.status(moment)
            self.browser.until(f"state.status?.time === {moment} && !frame")
            shown = self.browser.js(
                "[...document.querySelectorAll('#rows p')].map(row => row.innerText)"
            )
            return [int(text[3:]) for text in reversed(shown) if text.startswith("at ")]

        for with_metric in (False, True):
            self.go(puppet.url, "")
            puppet.opened()
            puppet.status(now)
            self.assertEqual(tell(0, 1, 2, with_metric=with_metric), [0, 1, 2])
            puppet.say("reset", now + 2000, reason="unknown")
            self.assertEqual(tell(1, 2, times=10, with_metric=with_metric), [0, 1, 2])
            puppet.say("reset", now + 2000, reason="expired")
            self.assertEqual(tell(4, with_metric=with_metric), [0, 1, 2, 4])
            self.assertEqual(self.browser.js("said.at(-1)"), "Live")
            self.assertNotIn("Reconnecting", self.browser.js("said"))
            self.assertIn("are gone", self.browser.text("#notice"))
            knocks = "state.alerts.find(alert => alert.message === 'a knock').count"
            self.assertEqual(self.browser.js(knocks), 4)
        self.assertEqual([value for _, value in self.points("load")], [0, 10, 20, None, 4])
        self.assertTrue(puppet.streams.empty())

    def test_nothing_but_its_status(self):
        """A server without metrics is Live: with alerts alone, after the last metric, and where
        that was read long ago."""
        self.before(self.WORDS)
        fast = (
            ("MIN_LATE_MS = 3000", "MIN_LATE_MS = 800"),
            ("GREETING_MS = 1000", "GREETING_MS = 100"),
            ("BEAT_MS = 1000", "BEAT_MS = 100"),
        )
        server = self.hurried(self.live(sources=[]), *fast)
        self.go(server.url)
        server.publish(alert("warning", "a door is open"))
        self.browser.until("document.querySelector('#rows').innerText.includes('a door is open')")
        self.browser.until("document.querySelector('#moment').innerText.startsWith('Times in')")
        self.browser.js("zoomTo(state.status.time - 9000, state.status.time)")
        self.browser.until("view.zoom && state.status.time - shown.end < 60_000")
        self.browser.js("backToLive()")
        server.publish(metric("late", 1, at=time.time() * 1000 - 100_000))
        self.browser.until("state.series.has('late')")
        server.publish(metric("loss", 0.5))
        self.browser.until("state.series.has('loss')")
        self.browser.until("serverTime(steady()) - state.newest > 1300")
        self.assertEqual(self.browser.js("said"), ["Connecting", "Live"])
        self.assertEqual(sum(server.status()["ended"].values()), 0)  # nothing older is asked for
        server = self.hurried(self.live(sources=[], interval=60), *fast)
        self.go(server.url)  # it greets, and has no more to say for now

    def test_a_stream_that_is_open_and_silent(self):
        """It is Delayed after three seconds, and replaced after five: nobody is told that old
        values are live. Here both pass four times as fast."""
        self.before(self.WORDS)
        hurry = {
            "MIN_LATE_MS": (3000, 750),
            "MIN_SILENCE_MS": (5000, 1250),
            "BEAT_MS": (1000, 100),
            "GREETING_MS": (1000, 100),
            "QUIET_MS": (1100, 100),
        }
        settings = [
            (f"const {name} = {ours};", f"const {name} = {theirs};")
            for name, (ours, theirs) in hurry.items()
        ]
        server = self.hurried(self.serve(ticks=0, interval=0.25), *settings)
        first = server.now = time.time_ns() // 1_000_000_000 * 1000 - 5000

        def tick_up_to_now():
            while server.now < time.time() * 1000 - 1000:
                server.tick(Simulation().events_at(server.now + 1000))

        tick_up_to_now()
        self.go(server.url, state=None)
        self.browser.until("said.join().includes('Delayed,Reconnecting')")
        self.assertTrue(eventually(lambda: server.closed))
        tick_up_to_now()
        self.browser.until(f"state.newest === {server.now}")
        self.assertEqual(
            [time for time, _ in self.points()], list(range(first + 1000, server.now + 1000, 1000))
        )

    def test_a_greeting_is_no_news(self):
        """A server whose ticks have stopped greets at each try, and is not Live by that."""
        self.before(self.WORDS)
        server = self.puppet(
            ("MIN_SILENCE_MS = 5000", "MIN_SILENCE_MS = 700"),
            ("MIN_LATE_MS = 3000", "MIN_LATE_MS = 400"),
            ("interval: 1000", "interval: 50"),
            ("BEAT_MS = 1000", "BEAT_MS = 50"),
            ("QUIET_MS = 1100", "QUIET_MS = 50"),
            ("FIRST_RETRY_MS = 1000", "FIRST_RETRY_MS = 250"),
            ("GREETING_MS = 1000", "GREETING_MS = 50"),
        )
        server.greets, server.status = True, functools.partial(server.status, interval=0.05)
        self.go(server.url, state="")
        server.opened()
        server.status(time.time_ns() // 1_000_000 + 1)
        self.browser.state("Live")
        self.browser.js("said = ['Live']")
        self.browser.until("link.tries >= 2")
        self.assertNotIn("Live", self.browser.js("said")[1:])

    def test_no_event_ever_came(self):
        """After some tries the page says which address it asks, and what usually is the matter."""
        self.before(self.CHANCE)
        server = self.live()
        self.browser.cdp("Network.enable")
        self.addCleanup(self.browser.cdp, "Network.setBlockedURLs", urls=[])
        self.browser.cdp("Network.setBlockedURLs", urls=["*events*"])
        self.go(server.url, "Reconnecting")
        self.browser.until("zoned !== null")
        self.assertFalse(self.shown("#hint"))
        self.browser.until("document.querySelector('#hint').checkVisibility()")
        self.assertIn(f"{server.url}api/events/all", self.browser.text("#hint"))
        self.assertIn("filter", self.browser.text("#hint"))
        self.assertNotIn("slash", self.browser.text("#hint"))
        self.browser.cdp("Network.setBlockedURLs", urls=[])
        self.browser.js("document.querySelector('#retry').click()")
        self.browser.state("Live")
        self.browser.until("document.querySelector('#hint').hidden")

        puppet = self.puppet(
            ("MIN_SILENCE_MS = 5000", "MIN_SILENCE_MS = 300"),
            ("interval: 1000", "interval: 100"),
            ("const BEAT_MS = 1000", "const BEAT_MS = 100"),
            ("PROVEN_MS = 5000", "PROVEN_MS = 300"),
        )
        self.go(f"{puppet.url}dash", "Reconnecting")
        self.browser.until("document.querySelector('#hint').checkVisibility()")
        self.assertIn("a proxy holds the stream back", self.browser.text("#hint"))
        self.assertIn(f"slash at its end: {puppet.url}dash/", self.browser.text("#hint"))
        self.assertNotIn("filter", self.browser.text("#hint"))
        self.assertGreater(self.browser.js("wait"), 1000)
        puppet.greets = True
        self.browser.state("Live")
        self.assertFalse(self.shown("#hint"))
        self.browser.until("wait === 1000")  # the line has proven itself

        self.browser.call("POST", "/url", {"url": (HERE / "index.html").as_uri()})
        self.browser.until("document.querySelector('#hint')?.checkVisibility()")
        self.assertIn("python sse_dashboard.py", self.browser.text("#hint"))
        self.assertEqual(self.browser.text("#state"), "Offline")

    def test_others_write_into_the_document_too(self):
        """Translated text and removed nodes: numbers go on changing, and are not translated. What
        fails in a part of a frame, or in one card of many, is said once, and stops no other."""
        server = self.live()
        self.go(server.url)
        server.publish(alert("info", "at a time"))
        self.browser.until("document.querySelector('#rows time') !== null")
        self.assertEqual(
            self.browser.js(
                "[...document.querySelectorAll('.number > *, .facts b, #rows time')]"
                ".filter(element => element.translate).map(element => element.outerHTML)"
            ),
            [],
        )
        self.browser.js(
            """(() => {
              const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
              const texts = [];
              while (walker.nextNode()) texts.push(walker.currentNode);
              for (const text of texts) {
                if (text.parentNode.closest('script, style')) continue;
                const font = document.createElement('font');
                text.replaceWith(font);
                font.append(document.createElement('font'));
                font.firstChild.append(text);
              }
              document.querySelector('#detail').remove();
              document.querySelector('#uptime').remove();
              cards[0].limits = null;
              const fails = () => { throw new Error('it failed'); };
              window.drawWaiting = window.drawToolbar = window.reach = fails;
              window.said = [];
              console.error = words => said.push(words);
            })()"""
        )
        self.ticks(3)
        self.browser.until(
            "!frame && parseFloat(document.querySelector('[data-metric=memory_usage] b').innerText)"
            " === state.series.get('memory_usage').values.at(-1)"
        )
        self.stream(server)
        self.browser.until("document.querySelector('#connections').innerText === '2'")
        self.ticks(3)
        self.browser.js("window.before = beatAt")
        self.browser.until("beatAt > window.before")  # every wait goes on
        failures = self.browser.js("said")
        for part in (
            "drawCards: Error",
            "fails: Error",
            "drawLines: TypeError",
            "drawWords: TypeError",
        ):
            self.assertEqual(sum(line.startswith(part) for line in failures), 1, failures)
        self.assertEqual(len(failures), 4, failures)

    def test_the_first_values_do_not_wait_for_the_language(self):
        """Nor for the tab's icon. The browser loads the language when it is first asked for, and a
        person sees numbers before; then all that is shown is written in it."""
        self.before(
            """
            for (const kind of ['NumberFormat', 'DateTimeFormat']) {
              Intl[kind] = new Proxy(Intl[kind], {construct(target, given) {
                window.iconThen ??= document.querySelector('#icon').getAttribute('href');
                window.first ??= document.querySelector('[data-metric=cpu_usage] b')?.innerText;
                return new target(...given);
              }});
            }
            """
        )
        self.addCleanup(self.browser.cdp, "Emulation.setLocaleOverride")
        self.browser.cdp("Emulation.setLocaleOverride", locale="ar-EG")
        now = time.time_ns() // 1_000_000
        said = Drawn(lambda tick: [alert("info", "Here")])
        server = self.live(sources=[Simulation(interval=0.25), said])
        self.go(f"{server.url}#from={now - 40_000}&to={now - 20_000}")
        self.browser.until("window.first")
        self.assertRegex(self.browser.js("first"), r"\A[0-9]+\.[0-9]\Z")
        self.assertEqual(self.browser.js("iconThen"), "data:,")
        self.browser.until("document.querySelector('#icon').href.includes('svg')")
        for selector in ("[data-metric=cpu_usage] b", "#windows button", "#log time", "#uptime"):
            self.browser.until(f"/^[٠-٩]/.test(document.querySelector('{selector}').innerText)")
        self.browser.until("cards.every(card => card.written.every(w => !/[0-9]/.test(w.string)))")
        words = self.browser.js("inWords(1234.5, {unit: 'rpm', digits: 1})")
        self.assertEqual(words, "١٬٢٣٤٫٥ rpm")

    def test_the_zone_is_that_of_the_moment_shown(self):
        """Not of 1970, when clocks on Lord Howe Island were at GMT+10."""
        self.addCleanup(self.browser.cdp, "Emulation.setTimezoneOverride", timezoneId="")
        self.browser.cdp("Emulation.setTimezoneOverride", timezoneId="Australia/Lord_Howe")
        self.go(self.live().url)
        self.browser.until("zoned !== null")
        zones = self.browser.js("[1, 7].map(month => zoneAt(Date.parse(`2026-0${month}-15`)))")
        self.assertEqual(zones, ["GMT+11", "GMT+10:30"])
        self.browser.until("document.querySelector('#moment').innerText.startsWith('Times in GMT')")
        self.browser.js("zoomBy(.5)")
        self.browser.until("/ to .* GMT/.test(document.querySelector('#moment').innerText)")
        self.browser.js("look(axisNow().from)")
        self.browser.until("/ GMT.* ago/.test(document.querySelector('#moment').innerText)")


if __name__ == "__main__":
    unittest.main()
