"""What sse_dashboard.py promises, one promise a test, in the order of its sections.

    python -m unittest

The event stream is read by a parser written from the standard (WHATWG HTML, "Interpreting an event stream"), not from our
encoder. Most tests drive a server whose ticks they publish by hand; nothing here waits for a while, only for an event, with
a deadline. What needs a browser or a proxy is skipped where there is none, or when SSE_TEST_BROWSER is 0.
"""

import base64
import contextlib
import errno
import functools
import hashlib
import http.client
import itertools
import json
import logging
import os
import random
import re
import resource
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

import sse_dashboard as sse
from sse_dashboard import Event, Filter, Simulation, alert, encode, metric

HERE = Path(__file__).resolve().parent
TICK = 1_767_225_600_000  # a tick at any interval
DEADLINE = 10  # seconds: no test waits longer for anything that should happen
METRICS = ["cpu_usage", "memory_usage", "disk_usage", "network_in", "network_out", "temperature", "load_average"]

# --------------------------------------------------------------------------------------------------------- Tools ----


class EventStreamParser:
    """The standard's algorithm: feed() it bytes, get (type, data, last event ID) for each event that is dispatched."""

    def __init__(self):
        self.rest, self.start, self.last_event_id, self.retry, self.comments = b"", True, "", None, 0
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
    return [(kind, json.loads(data), last_id) for kind, data, last_id in EventStreamParser().feed(stream)]


def eventually(condition, seconds=DEADLINE):
    """Waits until the condition holds; the deadline makes it false."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.01)
    return True


def events_of(tick, count=7, alerts=1):
    """A tick's worth of events that say where they belong."""
    return [*(metric(name, tick % 1000 + n, "") for n, name in enumerate(METRICS[:count])),
            *(alert(sse.LEVELS[n % 4], f"{tick}") for n in range(alerts))]


def filled(ticks=5, history=300.0, count=7, alerts=1):
    """A broadcaster that holds some ticks, a second apart."""
    broadcaster = sse.Broadcaster(1.0, history)
    for n in range(ticks):
        broadcaster.advance([(TICK + n * 1000, events_of(TICK + n * 1000, count, alerts))])
    return broadcaster


def read_all(broadcaster, *arguments, **options):
    """What a client that subscribes now is sent at once."""
    with broadcaster.subscribe(*arguments, **options) as subscription:
        subscription.end("closed")
        return parse(b"".join(subscription.frames()))


def ids(events):
    return [last_id for kind, _, last_id in events if kind in ("metric", "alert")]


class HandDriven(sse.DashboardServer):
    """A server on a free port of loopback. Its time passes only when a test calls tick()."""

    def __init__(self, **options):
        super().__init__("127.0.0.1", 0, **options)
        self.now = TICK
        self.closed = []

    def generator(self):
        return contextlib.nullcontext()

    def tick(self, events=None):
        self.now += 1000
        self.broadcaster.advance([(self.now, events_of(self.now) if events is None else events)])
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
        self.socket.connect(address)
        lines = [f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]
        self.socket.sendall("\r\n".join(lines).encode())
        self.parser, self.events, self.raw, self.head = EventStreamParser(), [], b"", b""

    def read(self):
        """Takes what has come; False at the end of the stream."""
        chunk = self.socket.recv(65536)
        self.raw += chunk
        if not self.head:
            if b"\r\n\r\n" not in self.raw:
                return bool(chunk)
            self.head, _, chunk = self.raw.partition(b"\r\n\r\n")
            self.raw = chunk
        self.events += [(kind, json.loads(data), last) for kind, data, last in self.parser.feed(chunk)]
        return bool(chunk) or bool(self.head and self.raw and not self.socket)

    def until(self, condition):
        """Reads until the condition holds, and gives back the events so far."""
        while not condition(self):
            before = len(self.raw) + len(self.head)
            self.read()
            if len(self.raw) + len(self.head) == before:
                raise AssertionError(f"the stream ended too early, after {self.events[-3:]}")
        return self.events

    def until_id(self, tick):
        return self.until(lambda stream: any(last.startswith(f"{tick}-8") for _, _, last in stream.events))

    def to_the_end(self):
        with contextlib.suppress(ConnectionError):
            while chunk := self.socket.recv(65536):
                self.raw += chunk
                self.events += [(kind, json.loads(data), last) for kind, data, last in self.parser.feed(chunk)]
        return self.events

    def opened(self):
        self.until(lambda stream: stream.parser.retry is not None)
        return self

    def reset(self):
        """Closes with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
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


class Command:
    """`python sse_dashboard.py` as a child process."""

    def __init__(self, *options, port=0, script=HERE / "sse_dashboard.py", **popen):
        self.process = subprocess.Popen([sys.executable, str(script), "--port", str(port), *map(str, options)],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
        self.url = self.process.stdout.readline().strip()
        found = re.search(r"http://(\S+):(\d+)/", self.url)
        self.address = ("127.0.0.1", int(found[2])) if found else None

    def end(self, number=signal.SIGTERM):
        """(exit status, standard error, seconds it took)"""
        start = time.monotonic()
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, errors, time.monotonic() - start

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


class Promises(unittest.TestCase):
    """What all tests share: a hand-driven server on demand, and no error in the log that a test does not expect."""

    def setUp(self):
        self.log = []
        handler = logging.Handler()
        handler.emit = lambda record: self.log.append(record)
        sse.logger.addHandler(handler)
        self.addCleanup(sse.logger.removeHandler, handler)
        propagate = mock.patch.object(sse.logger, "propagate", False)
        propagate.start()
        self.addCleanup(propagate.stop)

    def tearDown(self):
        self.assertEqual([record.getMessage() for record in self.log if record.levelno >= logging.ERROR], [])

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


# -------------------------------------------------------------------------------------------------------- Events ----


class Wire(Promises):
    def test_the_bytes_of_an_event(self):
        """An event is its type, a data field for each line of its data, its ID last, and an empty line."""
        for data, fields in {
            "": b"data: \n", "one": b"data: one\n", "a\nb": b"data: a\ndata: b\n", "a\rb": b"data: a\ndata: b\n",
            "a\r\nb": b"data: a\ndata: b\n", "a\n\rb": b"data: a\ndata: \ndata: b\n", "a\n": b"data: a\ndata: \n",
            " a": b"data:  a\n", "a\u2028b\x85c\x0bd": "data: a\u2028b\x85c\x0bd\n".encode(), "a\0b": b"data: a\0b\n",
            "id: 1": b"data: id: 1\n", "°C": "data: °C\n".encode(),
        }.items():
            with self.subTest(data=data):
                self.assertEqual(encode("metric", data, "7-1"), b"event: metric\n" + fields + b"id: 7-1\n\n")
                lines = re.sub(r"\r\n?", "\n", data)
                expected = [("metric", lines, "7-1")]
                self.assertEqual(list(EventStreamParser().feed(encode("metric", data, "7-1"))), expected)
        self.assertEqual(encode("status", "x"), b"event: status\ndata: x\n\n")

    def test_the_parser_of_these_tests_reads_as_the_standard_says(self):
        """CR, LF, CR LF, a byte order mark, comments and broken fields, in pieces of any size."""
        text = (b"\xef\xbb\xbf: hello\r\nretry: 7\rretry: x7\nevent: a\r\ndata:1\rdata: 2\nid: 5\r\n\r\n"
                b"id: 6\0\ndata\n\nnonsense: 1\nevent: no data\n\ndata:  x\n\n")
        for size in (1, 2, 3, 7, 1000):
            parser = EventStreamParser()
            pieces = [text[n : n + size] for n in range(0, len(text), size)]
            found = [event for piece in pieces for event in parser.feed(piece)]
            self.assertEqual(found, [("a", "1\n2", "5"), ("message", "", "5"), ("message", " x", "5")])
            self.assertEqual((parser.retry, parser.comments), (7, 1))

    def test_the_formats_of_the_contract(self):
        """Metric and alert events look exactly as they are documented."""
        when = sse.timestamp(TICK)
        self.assertEqual(
            metric("cpu_usage", 45.2, "%").encode(when, f"{TICK}-3").decode(),
            'event: metric\ndata: {"type": "metric", "name": "cpu_usage", "value": 45.2, "unit": "%", '
            '"timestamp": "2026-01-01T00:00:00.000Z"}\nid: 1767225600000-3\n\n')
        self.assertEqual(
            alert("warning", "High CPU usage detected", "cpu_usage").encode(when, f"{TICK}-8").decode(),
            'event: alert\ndata: {"type": "alert", "level": "warning", "message": "High CPU usage detected", '
            '"metric": "cpu_usage", "timestamp": "2026-01-01T00:00:00.000Z"}\nid: 1767225600000-8\n\n')
        self.assertNotIn("metric\":", alert("info", "Backup finished").json.replace('"metric",', ""))
        self.assertEqual(sse.timestamp(TICK + 7), "2026-01-01T00:00:00.007Z")

    def test_what_cannot_be_sent_raises_where_it_is_made(self):
        """Wrong events raise at birth, with a sentence that names the mistake."""
        for make, error, words in (
            (lambda: metric("x", float("nan")), ValueError, "finite"), (lambda: metric("x", float("inf")), ValueError, "finite"),
            (lambda: metric("x", "5"), TypeError, "number"), (lambda: metric("x", True), TypeError, "number"),
            (lambda: metric("x", None), TypeError, "number"), (lambda: metric("", 1), ValueError, "name"),
            (lambda: metric(5, 1), ValueError, "name"), (lambda: metric("\ud800", 1), ValueError, "surrogate"),
            (lambda: alert("fatal", "x"), ValueError, "info, success, warning, error"),
            (lambda: Event("a\nb", {}), ValueError, "one line"), (lambda: Event("a\rb", {}), ValueError, "one line"),
            (lambda: Event("a\0b", {}), ValueError, "NUL"), (lambda: Event("", {}), ValueError, "type"),
            (lambda: Event("a", {"timestamp": 1}), ValueError, "timestamp"), (lambda: Event("a", {"x": {1}}), TypeError, "set"),
            (lambda: encode("a", "x", "1\n2"), ValueError, "one line"),
        ):
            with self.assertRaisesRegex(error, words):
                make()

    def test_text_of_any_language_and_line_breaks_arrive_as_they_were(self):
        """What JSON can say comes out of the stream as it went in."""
        message = "line\r\nbreak \u2028 \0 <b>&\"' 日本 🙂"
        (_, data, _), = parse(alert("info", message).encode(sse.timestamp(0), "1-1"))
        self.assertEqual(data["message"], message)


# ---------------------------------------------------------------------------------------------------- Simulation ----


class TheSimulation(Promises):
    def test_the_same_seed_and_tick_give_the_same_bytes_in_every_process(self):
        """Two processes agree about every byte, and about nothing with another seed."""
        program = ("import sse_dashboard as s, hashlib, sys; sim = s.Simulation(int(sys.argv[1]), 0.5); h = hashlib.sha256();"
                   f"[h.update(e.encode('', '')) for t in range({TICK}, {TICK} + 900000, 500) for e in sim.events_at(t)];"
                   "print(h.hexdigest())")

        def digest(seed, hash_seed):
            return subprocess.run([sys.executable, "-c", program, seed], cwd=HERE, text=True, stdout=subprocess.PIPE,
                                  env={**os.environ, "PYTHONHASHSEED": hash_seed}, check=True).stdout

        self.assertEqual(digest("3", "1"), digest("3", "2"))
        self.assertNotEqual(digest("3", "1"), digest("4", "1"))

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
        """One metric event for each name at every tick, in order, with its unit and a value that can be."""
        units = dict(zip(METRICS, ["%", "%", "%", "B/s", "B/s", "°C", ""]))
        for seed in range(3):
            simulation = Simulation(seed, 10)
            for tick in range(TICK, TICK + 6 * 3_600_000, 10_000):
                found = [event.fields for event in simulation.events_at(tick) if event.type == "metric"]
                self.assertEqual({fields["name"]: fields["unit"] for fields in found}, units)
                self.assertEqual([fields["name"] for fields in found], METRICS)
                for fields in found:
                    self.assertTrue(0 <= fields["value"] <= (100 if fields["unit"] == "%" else 125e6), fields)

    def test_alerts_are_alive_and_do_not_shout(self):
        """One to three a minute, and all four levels within every ten minutes."""
        for seed in range(3):
            simulation = Simulation(seed)
            levels = [(tick, event.fields["level"]) for tick in range(TICK, TICK + 7_200_000, 1000)
                      for event in simulation.events_at(tick) if event.type == "alert"]
            self.assertTrue(120 <= len(levels) <= 360, len(levels))
            for start in range(TICK, TICK + 6_600_000, 10_000):
                seen = {level for tick, level in levels if start <= tick < start + 600_000}
                self.assertEqual(seen, set(sse.LEVELS), start)

    def test_a_threshold_is_told_once_and_its_end_too(self):
        """An alert names the metric whose reading crossed a threshold; it is not repeated before the return to normal."""
        crossings = 0
        for seed in range(4):
            simulation, state = Simulation(seed), dict.fromkeys(METRICS, 0)
            for tick in range(TICK, TICK + 7_200_000, 1000):
                events = simulation.events_at(tick)
                values = {event.fields["name"]: event.fields["value"] for event in events if event.type == "metric"}
                for fields in (event.fields for event in events if event.type == "alert" and "metric" in event.fields):
                    name, thresholds = fields["metric"], sse.READINGS[fields["metric"]].thresholds
                    crossings += 1
                    if fields["level"] == "success":
                        self.assertLess(values[name], thresholds[0].clear)
                        self.assertGreater(state[name], 0)
                        state[name] = 0
                    else:
                        level = [threshold.level for threshold in thresholds].index(fields["level"]) + 1
                        self.assertGreater(level, state[name], fields)
                        self.assertGreaterEqual(values[name], thresholds[level - 1].clear)
                        state[name] = level
        self.assertGreater(crossings, 20)


# -------------------------------------------------------------------------------------------------- Subscription ----


class OneSubscription(Promises):
    def test_a_full_queue_ends_it_as_slow_and_cuts_the_connection(self):
        """A client that is QUEUE_FRAMES behind is hung up on; what is offered later changes nothing."""
        cut = []
        subscription = sse.Subscription(lambda: cut.append(True))
        for _ in range(sse.QUEUE_FRAMES):
            subscription.offer(b"x")
        self.assertEqual((subscription.reason, cut), ("", []))
        subscription.offer(b"x")
        subscription.offer(b"x")
        self.assertEqual((subscription.reason, cut), ("slow", [True]))

    def test_the_end_comes_behind_what_is_queued(self):
        """What was offered before the end is still delivered, and the first reason stays."""
        subscription = sse.Subscription(lambda: self.fail("nothing is stuck here"))
        subscription.offer(b"1")
        subscription.offer(b"2")
        subscription.end("shutdown")
        subscription.end("closed")
        self.assertEqual(list(subscription.frames()), [b"1", b"2"])
        self.assertEqual(subscription.reason, "shutdown")


# --------------------------------------------------------------------------------------------------- Broadcaster ----

FILTERS = (Filter(), Filter(frozenset({"metric"})), Filter(frozenset({"alert"})), Filter(names=frozenset({"cpu_usage"})),
           Filter(frozenset({"metric"}), frozenset({"load_average", "disk_usage"})), Filter(levels=frozenset({"error"})))


class TheBroadcaster(Promises):
    def test_ids_are_the_tick_and_the_number_in_it(self):
        """IDs strictly increase, over ticks, events in between, and a clock that is set back."""
        broadcaster = filled(2)
        broadcaster.publish(alert("info", "between"))
        broadcaster.publish(alert("info", "again"))
        broadcaster.advance([(TICK + 2000, events_of(0))])
        found = ids(read_all(broadcaster, history=1000))
        numbers = [tuple(map(int, text.split("-"))) for text in found]
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertEqual(found[:8], [f"{TICK}-{n}" for n in range(1, 9)])
        self.assertEqual([tick for tick, _ in numbers[16:18]], [TICK + 1000] * 2)
        self.assertEqual(broadcaster.events_published, 26)
        self.assertEqual(broadcaster.last_event_id, f"{TICK + 2000}-8")

    def test_an_event_between_ticks_has_a_new_id_after_a_restart_too(self):
        """Its number counts the milliseconds since the tick, so that a client's last ID never hides a later event."""
        now = [TICK + 10]
        with mock.patch.object(sse, "now_ms", lambda: now[0]):
            before, after = filled(1), filled(1)
            now[0] = TICK + 200
            before.publish(alert("info", "before"))
            now[0] = TICK + 700
            after.publish(alert("info", "after the restart"))
        last = ids(read_all(before))[-1]
        self.assertEqual([data["message"] for _, data, _ in read_all(after, Filter(frozenset({"alert"})), last)],
                         ["after the restart"])

    def test_resume_at_every_position_under_every_filter(self):
        """After any ID, sent or not, come exactly the later events that pass the filter."""
        broadcaster = filled(3, alerts=4)
        for wanted in FILTERS:
            everything = read_all(broadcaster, wanted, history=1000)
            for tick in (TICK, TICK + 1000, TICK + 1500, TICK + 2000, TICK + 3000):
                for number in range(0, 14):
                    expected = [event for event in everything
                                if event[0] != "status" and tuple(map(int, event[2].split("-"))) > (tick, number)]
                    found = [event for event in read_all(broadcaster, wanted, f"{tick}-{number}") if event[0] != "status"]
                    self.assertEqual(found, expected, (wanted, tick, number))

    def test_the_first_bytes_are_the_reconnection_time(self):
        """Each client is told another one, between two and four seconds."""
        broadcaster, told = filled(), set()
        for _ in range(30):
            with broadcaster.subscribe() as subscription:
                first = next(subscription.frames())
            found = re.match(rb"retry: (\d+)\n\n", first)
            told.add(int(found[1]))
        self.assertTrue(all(2000 <= ms <= 4000 for ms in told))
        self.assertGreater(len(told), 5)

    def test_without_an_id_the_newest_tick_comes_at_once(self):
        """A new client sees values before the next tick, on `all` with a status before them."""
        events = read_all(filled(3))
        self.assertEqual([kind for kind, _, _ in events], ["status", *["metric"] * 7, "alert"])
        self.assertEqual(ids(events)[0], f"{TICK + 2000}-1")
        self.assertEqual(events[0][1]["connections"], 1)
        self.assertEqual(events[0][1]["interval_seconds"], 1.0)

    def test_history_is_the_last_seconds_at_most_what_is_held(self):
        """`history` replays whole ticks; 0 replays nothing; an ID beats it."""
        broadcaster = filled(10, history=6)
        for seconds, ticks in ((0, 0), (1, 1), (2.5, 3), (6, 6), (3600, 6)):
            self.assertEqual(len(ids(read_all(broadcaster, history=seconds))), 8 * ticks, seconds)
        self.assertEqual(len(ids(read_all(broadcaster, last_event_id=f"{TICK + 9000}-7", history=5))), 1)
        broadcaster.publish(alert("info", "later"))
        with broadcaster.subscribe(history=0) as subscription:
            broadcaster.publish(alert("info", "live"))
            subscription.end("closed")
            messages = [data["message"] for kind, data, _ in parse(b"".join(subscription.frames())) if kind == "alert"]
        self.assertEqual(messages, ["live"])

    def test_only_the_history_is_held(self):
        """Older ticks are forgotten; without a history the newest tick stays, for new clients."""
        self.assertEqual(len(ids(read_all(filled(500, history=20), last_event_id="1-1"))), 160)
        nothing = filled(5, history=0)
        self.assertEqual(len(ids(read_all(nothing))), 8)
        self.assertEqual(read_all(nothing, last_event_id=f"{TICK + 3000}-8")[0][0], "status")

    def test_an_expired_id_is_told_and_everything_held_follows(self):
        """`reset` comes first, without an ID; an ID whose successors are all held is no case for it."""
        broadcaster = filled(10, history=5)
        for last_id in ("1-1", f"{TICK + 4000}-7", f"{TICK}-99"):
            kind, data, last = read_all(broadcaster, last_event_id=last_id)[0]
            self.assertEqual((kind, data["reason"], last), ("reset", "expired", ""))
            self.assertEqual(len(ids(read_all(broadcaster, last_event_id=last_id))), 40)
        for last_id in (f"{TICK + 4000}-8", f"{TICK + 5000}-1"):
            self.assertEqual(read_all(broadcaster, last_event_id=last_id)[0][0], "status")

    def test_an_unknown_id_is_told_and_everything_held_follows(self):
        """What is no ID, or lies more than a minute ahead, is never an error: that would stop a browser for good."""
        with mock.patch.object(sse, "now_ms", lambda: TICK + 2500):
            broadcaster = filled(3)
            for last_id in ("x", "1", "-", "1-", "1-x", "٣-١", "1" * 5000 + "-1", f"{TICK + 2500 + 60_001}-1", "-1-1", " "):
                kind, data, _ = read_all(broadcaster, last_event_id=last_id)[0]
                self.assertEqual((kind, data["reason"]), ("reset", "unknown"), last_id)
                self.assertEqual(len(ids(read_all(broadcaster, last_event_id=last_id))), 24)

    def test_an_id_a_little_ahead_waits_for_its_moment(self):
        """A client that comes from a server whose clock is ahead gets nothing twice, and its status all the while."""
        with mock.patch.object(sse, "now_ms", lambda: TICK + 2500):
            broadcaster = filled(3)
            with broadcaster.subscribe(last_event_id=f"{TICK + 4000}-3") as subscription:
                for n in range(3, 7):
                    broadcaster.advance([(TICK + n * 1000, events_of(0))])
                subscription.end("closed")
                events = parse(b"".join(subscription.frames()))
        self.assertEqual(ids(events)[:6], [f"{TICK + 4000}-{n}" for n in range(4, 9)] + [f"{TICK + 5000}-1"])
        self.assertEqual(len(ids(events)), 5 + 16)
        self.assertEqual([kind for kind, _, _ in events].count("status"), 5)

    def test_one_frame_for_each_filter(self):
        """Clients with the same filter get the very same bytes object; a tick is one frame."""
        broadcaster = filled(1)
        with contextlib.ExitStack() as stack:
            several = [stack.enter_context(broadcaster.subscribe(wanted, history=0)) for wanted in FILTERS[:2] * 3]
            streams = [subscription.frames() for subscription in several]
            for stream in streams:
                next(stream)
            broadcaster.advance([(TICK + 1000, events_of(0))])
            frames = [next(stream) for stream in streams]
        self.assertEqual(len({id(frame) for frame in frames}), 2)
        self.assertEqual(len(parse(frames[0])), 9)

    def test_who_joins_while_publishing_runs_sees_every_event_once(self):
        """History and registration are one step: whatever the timing, no gap and no double."""
        broadcaster, done, results = filled(1, alerts=0, count=3), threading.Event(), []

        def publish():
            for n in range(1, 2000):
                broadcaster.advance([(TICK + n * 1000, events_of(0, 3, 0))])
            done.set()

        def join():
            while not done.is_set():
                with mock.patch.object(sse.queue, "Queue", sse.queue.Queue), broadcaster.subscribe(history=5) as subscription:
                    frames, got = subscription.frames(), b""
                    while got.count(b"-3\n") < 25 and not done.is_set():
                        got += next(frames)
                    subscription.end("closed")
                results.append([tuple(map(int, text.split("-"))) for text in ids(parse(got))])

        with mock.patch.object(sse, "QUEUE_FRAMES", 5000):
            threads = [threading.Thread(target=join) for _ in range(4)]
            for thread in threads:
                thread.start()
            publish()
            broadcaster.close()
            for thread in threads:
                thread.join(DEADLINE)
        checked = 0
        for found in results:
            for (tick, number), (next_tick, next_number) in itertools.pairwise(found):
                checked += 1
                self.assertEqual((next_tick, next_number), (tick, number + 1) if number < 3 else (tick + 1000, 1))
        self.assertGreater(checked, 100)

    def test_silence_is_filled_with_comments(self):
        """After HEARTBEAT_SECONDS without an event a comment comes, and not to those who heard something."""
        self.setting(HEARTBEAT_SECONDS=0.0)
        broadcaster = filled(1)
        with broadcaster.subscribe(Filter(frozenset({"alert"})), history=0) as silent:
            broadcaster.heartbeat()
            self.setting(HEARTBEAT_SECONDS=3600.0)
            broadcaster.heartbeat()
            silent.end("closed")
            self.assertEqual(b"".join(silent.frames()).partition(b"\n\n")[2], b":\n\n")

    def test_a_filter_that_raises_spoils_nothing_for_others(self):
        """It is logged with its traceback; the tick is skipped for its audience, and all streams go on."""

        class Broken(Filter):
            def passes(self, entry):
                raise ZeroDivisionError("filter")

        broadcaster = filled(1)
        with broadcaster.subscribe(history=0) as good, broadcaster.subscribe(Broken(), history=0) as bad:
            broadcaster.advance([(TICK + 1000, events_of(0))])
            good.end("closed")
            self.assertEqual(len(ids(parse(b"".join(good.frames())))), 8)
            self.assertEqual(bad.reason, "")
        self.assertEqual(self.expect_logged("raised")[0].exc_info[0], ZeroDivisionError)

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

    def test_publishing_what_is_no_event_raises(self):
        """The mistake is told where it is made."""
        with self.assertRaisesRegex(TypeError, "metric\\(\\) and alert\\(\\)"):
            filled(1).publish({"type": "metric"})

    def test_leaving_leaves_nothing(self):
        """When the last client of a filter has gone, nothing of it is kept."""
        broadcaster = filled(1)
        with broadcaster.subscribe(), broadcaster.subscribe(FILTERS[3]):
            self.assertEqual(broadcaster.connections, 2)
        self.assertEqual((broadcaster.connections, broadcaster._audiences), (0, {}))


# ----------------------------------------------------------------------------------------------- Generator thread ----


class Counting:
    """A source that counts its ticks, and does what it is told."""

    def __init__(self, replayable=False, act=lambda tick: [metric("own", 1)]):
        self.replayable, self.act, self.ticks, self.arrived = replayable, act, [], threading.Semaphore(0)

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

    def time(self):
        return TICK / 1000 + time.monotonic() - self.start + self.wall

    def monotonic(self):
        return time.monotonic() + self.steady

    def __getattr__(self, name):
        return getattr(time, name)


class TheGenerator(Promises):
    def test_history_is_filled_from_replayable_sources_alone(self):
        """At the start it asks a source that depends on the tick alone for the whole history, any other for nothing."""
        simulated, own = Counting(True), Counting(False, lambda tick: [metric("live", 1)])
        broadcaster = sse.Broadcaster(1.0, 20)
        with sse.Generator(broadcaster, [own, simulated]):
            self.assertEqual(len(simulated.ticks), 20)
            self.assertEqual(simulated.ticks, sorted(simulated.ticks))
            self.assertTrue(all(tick % 1000 == 0 for tick in simulated.ticks))
            own.wait_for(1)
            self.assertTrue(eventually(lambda: broadcaster.events_published))
        newest = [data["name"] for kind, data, _ in read_all(broadcaster) if kind == "metric"]
        self.assertEqual(newest, ["own", "live"])  # replayable ones first: their IDs are the same after a restart

    def test_a_source_that_raises_is_logged_and_left_out(self):
        """The traceback is logged, the tick goes on without its events, and the next tick comes."""
        broken, good = Counting(act=lambda tick: 1 / 0), Counting()
        strange = Counting(act=lambda tick: ["no event"])
        broadcaster = sse.Broadcaster(0.05, 0)
        with broadcaster.subscribe() as subscription, sse.Generator(broadcaster, [broken, strange, good]):
            broken.wait_for(3)
            good.wait_for(3)
            subscription.end("closed")
            events = parse(b"".join(subscription.frames()))
        self.assertEqual({data["name"] for kind, data, _ in events if kind == "metric"}, {"own"})
        self.assertGreaterEqual([kind for kind, _, _ in events].count("status"), 2)
        found = self.expect_logged("left out")
        self.assertLessEqual({ZeroDivisionError, TypeError}, {record.exc_info[0] for record in found})

    def test_late_ticks_are_made_up_for(self):
        """After a pause shorter than the history no tick is missing, and they are one frame."""
        clock = FakeTime()
        with mock.patch.object(sse, "time", clock):
            source, broadcaster = Counting(True), sse.Broadcaster(0.05, 300)
            with broadcaster.subscribe(history=0) as subscription, sse.Generator(broadcaster, [source]):
                source.wait_for(6001)
                clock.wall += 20
                source.wait_for(450)
                self.assertEqual(subscription.reason, "")
        self.assertEqual({b - a for a, b in itertools.pairwise(source.ticks)}, {50})

    def test_after_a_long_pause_every_client_is_told_to_start_over(self):
        """What is not made up for is said: streams end as `lapsed`, and their last event ID has expired."""
        clock = FakeTime()
        with mock.patch.object(sse, "time", clock):
            source, broadcaster = Counting(True), sse.Broadcaster(0.05, 2)
            with broadcaster.subscribe() as subscription, sse.Generator(broadcaster, [source]):
                source.wait_for(45)
                last = broadcaster.last_event_id
                clock.wall += 3600
                self.assertTrue(eventually(lambda: subscription.reason == "lapsed"))
                self.assertTrue(eventually(lambda: broadcaster.last_event_id != last and broadcaster.last_event_id))
                self.assertEqual(read_all(broadcaster, last_event_id=last)[0][1]["reason"], "expired")
        self.assertLess(len(source.ticks), 3000)

    def test_a_clock_that_is_set_back_stops_nothing(self):
        """Ticks go on at their pace, and their IDs still increase."""
        clock = FakeTime()
        with mock.patch.object(sse, "time", clock):
            source, broadcaster = Counting(True), sse.Broadcaster(0.05, 1)
            with sse.Generator(broadcaster, [source]):
                source.wait_for(25)
                clock.wall -= 3600
                source.wait_for(20)
        self.assertEqual({b - a for a, b in itertools.pairwise(source.ticks)}, {50})

    def test_the_thread_ends_with_the_block(self):
        """Leaving ends the generator thread, also in the middle of a long interval."""
        with sse.Generator(sse.Broadcaster(60.0, 0), [Counting()]) as generator:
            self.assertTrue(generator._thread.is_alive())
        self.assertFalse(generator._thread.is_alive())


# ------------------------------------------------------------------------------------------------------- Handler ----

STREAMS = ("/api/events/metrics", "/api/events/alerts", "/api/events/all")
ROUTES = ("/", "/api/status", *STREAMS)


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
        return int(status.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body

    def check_problem(self, expected, request):
        status, headers, body = self.answer(request)
        self.assertEqual((status, headers["content-type"], headers["connection"]), (expected, "application/json", "close"))
        self.assertEqual(list(json.loads(body)), ["error"])
        self.assertEqual(int(headers["content-length"]), len(body))
        return headers, json.loads(body)["error"]

    def test_the_page(self):
        """`/` is index.html, with a policy that allows its own script and style by hash, and nothing else."""
        status, headers, body = fetch(self.address, "/")
        self.assertEqual((status, body), (200, (HERE / "index.html").read_bytes()))
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        for tag in ("script", "style"):
            found = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>".encode(), body, re.DOTALL)
            expected = [f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found]
            self.assertEqual(policy.pop(f"{tag}-src").split(), expected)
        self.assertEqual(policy, {"default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'",
                                  "form-action": "'none'", "frame-ancestors": "'none'"})
        self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
        self.assertEqual(headers["Referrer-Policy"], "no-referrer")
        self.assertTrue(headers["Content-Type"].startswith("text/html"))
        self.assertIsNone(headers["Access-Control-Allow-Origin"])

    def test_the_page_is_sent_once(self):
        """With the page's ETag in If-None-Match: 304, no body."""
        tag = fetch(self.address, "/")[1]["ETag"]
        for value, expected in ((tag, 304), (f'"x", W/{tag}', 304), ("*", 304), ('"x"', 200), ("", 200)):
            status, headers, body = fetch(self.address, "/", headers={"If-None-Match": value})
            self.assertEqual((status, bool(body), headers["ETag"]), (expected, expected == 200, tag))

    def test_the_headers_of_an_event_stream(self):
        """Each stream says what it is, that nobody may store, change or buffer it, and that it ends with the connection."""
        for path in STREAMS:
            head = self.stream(self.server, path).opened().head.decode()
            for line in ("HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Cache-Control: no-store, no-transform",
                         "X-Accel-Buffering: no", "X-Content-Type-Options: nosniff", "Connection: close",
                         "Access-Control-Allow-Origin: *"):
                self.assertIn(line, head.split("\r\n"))
            self.assertNotIn("Content-Length", head)
            self.assertNotIn("Transfer-Encoding", head)

    def test_what_each_stream_carries(self):
        """`metrics` carries metric, `alerts` carries alert, `all` both and the status."""
        for path, kinds in zip(STREAMS, ({"metric"}, {"alert"}, {"metric", "alert", "status"})):
            stream = self.stream(self.server, path + "?history=60").opened()
            tick = self.server.tick()
            events = stream.until(lambda stream: any(last.startswith(str(tick)) for _, _, last in stream.events))
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
                get = exchange(self.address, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")[0]
            ignore = rb"(Date|Content-Length): [^\r]*"  # the status changes between the two
            self.assertEqual(re.sub(ignore, b"", head.strip()), re.sub(ignore, b"", get.strip()), path)
        self.assertEqual(self.answer(b"HEAD /api/events/all?history=x HTTP/1.1\r\nHost: x\r\n\r\n")[::2], (400, b""))

    def test_options_tells_what_is_allowed(self):
        """OPTIONS: 204, Allow, and what a page of another origin may send."""
        for path in (*ROUTES, "*"):
            status, headers, body = self.answer(f"OPTIONS {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self.assertEqual((status, body), (204, b""))
            self.assertEqual(headers["allow"], "GET, HEAD, OPTIONS")
            self.assertEqual(headers["access-control-allow-methods"], "GET, HEAD, OPTIONS")
            self.assertEqual(headers["access-control-allow-headers"], "Last-Event-ID, Cache-Control")
            self.assertEqual(headers.get("access-control-allow-origin"), "*" if path.startswith("/api") else None)
            self.assertNotIn("content-length", headers)

    def test_other_methods_and_other_paths(self):
        """Another method is 405 with Allow; another path 404, whatever the method."""
        for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "get"):
            for path in ROUTES:
                headers, sentence = self.check_problem(405, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                self.assertEqual(headers["allow"], "GET, HEAD, OPTIONS")
        for method in ("GET", "POST", "OPTIONS", "FOO"):
            for path in ("/x", "/api", "/api/events", "/api/events/", "/index.html", "/../etc/passwd", "/%2e%2e/x"):
                self.check_problem(404, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def test_the_status(self):
        """The snapshot is JSON with true numbers, not to be stored."""
        first = self.stream(self.server).opened()
        status, headers, body = fetch(self.address, "/api/status")
        snapshot = json.loads(body)
        self.assertEqual((status, headers["Content-Type"], headers["Cache-Control"]), (200, "application/json", "no-store"))
        self.assertEqual(headers["Access-Control-Allow-Origin"], "*")
        self.assertEqual((snapshot["status"], snapshot["connections"]), ("ok", 1))
        self.assertEqual((snapshot["events_published"], snapshot["last_event_id"]), (24, f"{self.server.now}-8"))
        self.assertGreaterEqual(snapshot["uptime_seconds"], 0)
        self.assertEqual(set(snapshot["ended"]), set(sse.REASONS))
        first.socket.close()
        self.assertTrue(eventually(lambda: json.loads(fetch(self.address, "/api/status")[2])["ended"]["closed"] == 1))

    def test_filters(self):
        """Names and levels, repeated or with commas, narrow their own kind; an empty value and unknown parameters nothing."""
        for query, names, levels in (
            ("name=cpu_usage", {"cpu_usage"}, set(sse.LEVELS)),
            ("name=cpu_usage&name=load_average", {"cpu_usage", "load_average"}, set(sse.LEVELS)),
            ("name=cpu_usage,load_average&level=", {"cpu_usage", "load_average"}, set(sse.LEVELS)),
            ("level=warning,error", set(METRICS), {"warning", "error"}),
            ("level=info&name=disk_usage", {"disk_usage"}, {"info"}),
            ("name=&foo=bar&foo", set(METRICS), set(sse.LEVELS)),
        ):
            stream = self.stream(self.server, f"/api/events/all?{query}").opened()
            self.server.tick(events_of(0, 7, 4))
            events = stream.until(lambda stream: sum(kind == "status" for kind, _, _ in stream.events) >= 2)
            new = [data for _, data, last in events if last.startswith(str(self.server.now))]
            self.assertEqual({data["name"] for data in new if data["type"] == "metric"}, names)
            self.assertEqual({data["level"] for data in new if data["type"] == "alert"}, levels)
        stream = self.stream(self.server, "/api/events/metrics?level=error&history=60")
        self.assertEqual(len(stream.until(lambda stream: len(stream.events) >= 7)[:7]), 7)

    def test_bad_parameters(self):
        """A name, level or history that cannot be is 400, and the answer names what can."""
        for path in STREAMS:
            for query, words in (("name=cpu", METRICS), ("level=fatal", sse.LEVELS), ("name=cpu_usage,x", METRICS),
                                 *((f"history={text}", ["seconds"]) for text in ("x", "-1", "nan", "inf", "1e3", "1_0", "+1", "%20")),
                                 ("lastEventId=1%0A2", ["control"]), ("lastEventId=%00", ["control"])):
                _, sentence = self.check_problem(400, f"GET {path}?{query} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                for word in words:
                    self.assertIn(word, sentence)
        self.check_problem(400, b"GET /api/events/all HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 1\x01\r\n\r\n")
        self.check_problem(400, b"GET /api/events/all?%b HTTP/1.1\r\nHost: x\r\n\r\n" % b"&".join([b"a=1"] * 200))

    def test_resume_by_header_and_by_parameter(self):
        """`Last-Event-ID` beats `lastEventId`, and both beat `history`."""
        early, late = f"{self.server.now - 2000}-8", f"{self.server.now}-6"
        for query, headers, count in ((f"?lastEventId={late}", (), 2), (f"?lastEventId={early}&history=0", (), 16),
                                      (f"?lastEventId={early}", [f"Last-Event-ID: {late}"], 2),
                                      ("?history=60", [f"Last-Event-ID: {late}"], 2), ("?lastEventId=", (), 8)):
            stream = self.stream(self.server, f"/api/events/all{query}", headers).opened()
            tick = self.server.tick([])
            events = stream.until(lambda stream: sum(kind == "status" for kind, _, _ in stream.events) >= 2)
            self.assertEqual(len(ids(events)), count, query)
            self.server.now = tick - 1000
            self.server.broadcaster._last = (tick - 1000, 8)

    def test_a_reset_is_an_answer_like_any_other(self):
        """An ID that is no ID: 200, first `reset`, then all that is held."""
        stream = self.stream(self.server, "/api/events/metrics?lastEventId=nonsense")
        events = stream.until(lambda stream: len(stream.events) >= 22)
        self.assertIn(b" 200 ", stream.head)
        self.assertEqual((events[0][0], events[0][1]["reason"], events[0][2]), ("reset", "unknown", ""))
        self.assertEqual(len(ids(events)), 21)

    def test_targets(self):
        """Absolute form, doubled slashes, escapes and HTTP/1.0 reach the same route; other forms get 400."""
        for line in (b"GET http://x/api/status HTTP/1.1", b"GET //api/status HTTP/1.1", b"GET /api/%73tatus?x HTTP/1.1",
                     b"GET http://x/api/status?a=b HTTP/1.1"):
            self.assertEqual(self.answer(line + b"\r\nHost: x\r\n\r\n")[0], 200, line)
        self.assertEqual(self.answer(b"GET /api/status HTTP/1.0\r\n\r\n")[0], 200)
        for line in (b"GET ftp://x/ HTTP/1.1", b"GET x HTTP/1.1", b"GET http://[ HTTP/1.1", b"GET * HTTP/1.1"):
            self.check_problem(400, line + b"\r\nHost: x\r\n\r\n")

    def test_a_request_has_one_host(self):
        """HTTP/1.1 without a Host, or with two, is 400 (RFC 9112, 3.2)."""
        self.check_problem(400, b"GET / HTTP/1.1\r\n\r\n")
        self.check_problem(400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")

    def test_what_is_too_long_or_no_request(self):
        """Garbage, long lines and many headers: 400, 414, 431, 505, with a JSON body."""
        for request, expected in (
            (b"garbage\r\n\r\n", 400), (b"\x16\x03\x01\x02\x00\r\n\r\n", 400), (b"GET / HTTP/x\r\n\r\n", 400),
            (b"GET / / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        ):
            self.check_problem(expected, request)

    def test_bodies_and_second_requests_are_not_read_as_requests(self):
        """A body, or a request behind the first, is never answered: one request, one response, and the end."""
        for request in (
            b"GET /api/status HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n...........",
            b"GET /api/status HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /api/status HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
        ):
            answer = exchange(self.address, request)
            self.assertEqual(answer.count(b"HTTP/1.1 "), 1)
            self.assertIn(b" 200 OK", answer)
        self.check_problem(405, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + b"x" * 200_000)

    def test_nothing_a_client_sends_is_echoed(self):
        """Neither a header nor a log line holds what could break it."""
        evil = b"/%0d%0aSet-Cookie:a=b\x1b[31m?name=%0d%0aX:y"
        sse.logger.setLevel(logging.DEBUG)
        self.addCleanup(sse.logger.setLevel, logging.NOTSET)
        for request in (b"GET " + evil + b" HTTP/1.1\r\nHost: \x1b[31mx\r\n\r\n", b"\x1b[31m" + evil + b"\r\n\r\n",
                        b"GET /api/events/all?lastEventId=" + evil + b" HTTP/1.1\r\nHost: x\r\n\r\n"):
            answer = exchange(self.address, request)
            for part in (b"Set-Cookie", b"\x1b", b"X:y"):
                self.assertNotIn(part, answer)
        self.assertTrue(self.log)
        for record in self.log:
            self.assertTrue(record.getMessage().isprintable(), record.getMessage())

    def test_300_mutations_of_valid_requests(self):
        """Whatever comes, it is answered or closed, without a traceback, and the server serves on."""
        self.setting(REQUEST_SECONDS=0.3, LINGER_SECONDS=0.1)
        chance = random.Random(7)
        valid = [b"GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: \"x\"\r\n\r\n", b"HEAD /api/status HTTP/1.0\r\n\r\n",
                 b"GET /api/events/all?history=5&name=cpu_usage&lastEventId=1-1 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: 5-5\r\n\r\n",
                 b"OPTIONS /api/events/alerts?level=info HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"]
        pieces = [b"\r\n", b"\0", b"\xff", b" ", b":", b"%", b"?", b"&", b"=", b"HTTP/9.9", b"\t", b"-", b"//", b"A" * 5000, b"\n"]
        watcher = self.stream(self.server).opened()
        with selectors.DefaultSelector() as waiting:
            for _ in range(300):
                request = bytearray(chance.choice(valid))
                for _ in range(chance.randint(1, 5)):
                    at = chance.randrange(len(request) + 1)
                    request[at : at + chance.choice([0, 0, 1, 3])] = chance.choice(pieces)
                connection = socket.create_connection(self.address, DEADLINE)
                self.addCleanup(connection.close)
                connection.sendall(request)
                waiting.register(connection, selectors.EVENT_READ)
            end = time.monotonic() + DEADLINE
            while waiting.get_map():
                self.assertLess(time.monotonic(), end, "a connection got neither an answer nor its end")
                for key, _ in waiting.select(1):
                    with contextlib.suppress(ConnectionError):
                        answer = key.fileobj.recv(65536)
                        self.assertRegex(answer, rb"\A(HTTP/1\.1 \d\d\d |\Z)")
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()
        self.assertEqual(fetch(self.address, "/api/status")[0], 200)
        watcher.until_id(self.server.tick())
