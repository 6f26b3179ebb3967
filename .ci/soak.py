"""Runs the server under streaming clients and a fault every second, and compares with the truth.

    python .ci/soak.py [--minutes 10] [--clients 200] [--seed 1]

Clients come back by their last event ID whenever they are cut, as a browser does, but at once. What
they should have seen is what the simulation says for the same seed and interval. In the first third
of the time the server is also killed, ended and started again. Then all clients leave, and threads,
descriptors and memory are noted: from there on they must stand. It runs on Linux. The exit status
is 1 when an event was lost or came twice, or when something was left behind.
"""

import argparse
import json
import random
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sse_dashboard

INTERVAL = 0.2
SPARE = 100  # places beside the clients: what is over it is refused
OWN_THREADS = 4  # of the server: main, log, generator, serve
GROWTH_KIB = 4096  # of memory, that counts as none
ROUTES = {"all": ("metric", "alert"), "metrics": ("metric",), "alerts": ("alert",)}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


class Server:
    """The server as a child process, on one port for all its lives."""

    def __init__(self, clients: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        limits = ["--interval", str(INTERVAL), "--max-clients", str(clients + SPARE)]
        self.options = ["--port", str(self.port), *limits]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - for all its lives
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, sse_dashboard.__file__, *self.options],
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        assert self.process.stdout
        self.process.stdout.readline()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)

    def status(self) -> dict:
        with urlopen(f"http://127.0.0.1:{self.port}/api/status", timeout=10) as response:
            return json.load(response)

    def usage(self) -> tuple[int, int, int]:
        """Threads, descriptors, and KiB of memory, as soon as nobody is left.

        It waits no longer than the server's own deadlines last."""
        folder = Path(f"/proc/{self.process.pid}")
        patience = time.monotonic() + sse_dashboard.REQUEST_SECONDS + 5
        while len(list((folder / "task").iterdir())) > OWN_THREADS and time.monotonic() < patience:
            time.sleep(0.1)
        time.sleep(sse_dashboard.LINGER_SECONDS + 1)
        memory = re.findall(r"VmRSS:\s+(\d+)", (folder / "status").read_text())
        return (
            len(list((folder / "task").iterdir())),
            len(list((folder / "fd").iterdir())),
            int(memory[0]),
        )


class Client:
    """One reader. Its ID is that of the last event that came whole."""

    def __init__(self, soak: "Soak", route: str, start: int) -> None:
        self.soak, self.route, self.last_id = soak, route, f"{start}-0"
        self.seen: list[tuple[int, int]] = []
        self.connection: socket.socket | None = None
        self.resume_at, self.deaf_until, self.resets, self.refused = 0.0, 0.0, 0, 0

    def connect(self) -> None:
        self.rest, self.in_body = b"", False
        request = (
            f"GET /api/events/{self.route} HTTP/1.1\r\n"
            f"Host: localhost\r\nLast-Event-ID: {self.last_id}\r\n\r\n"
        )
        try:
            self.connection = socket.socket()
            # A small buffer is soon full when nobody reads.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self.connection.connect(("127.0.0.1", self.soak.server.port))
            self.connection.sendall(request.encode())
        except OSError:
            self.cut()
        else:
            self.connection.setblocking(False)
            self.soak.selector.register(self.connection, selectors.EVENT_READ, self)

    def cut(self) -> None:
        """Closes the connection, and comes back in a moment."""
        if self.connection:
            if self.connection in self.soak.selector.get_map():
                self.soak.selector.unregister(self.connection)
            self.connection.close()
        self.connection, self.deaf_until = None, 0
        self.resume_at = time.monotonic() + random.uniform(0.02, 0.3)

    def go_deaf(self, seconds: float) -> None:
        """Reads nothing for a while."""
        self.deaf_until = time.monotonic() + seconds
        self.soak.selector.unregister(self.connection)

    def wake(self) -> None:
        self.deaf_until = 0
        self.soak.selector.register(self.connection, selectors.EVENT_READ, self)

    def read(self) -> None:
        try:
            received = self.connection.recv(65536)
        except OSError:
            received = b""
        self.rest += received
        if not self.in_body and b"\r\n\r\n" in self.rest:
            head, _, self.rest = self.rest.partition(b"\r\n\r\n")
            self.in_body = b" 200 " in head.partition(b"\r\n")[0]
            self.refused += not self.in_body
        if self.in_body:
            *events, self.rest = self.rest.split(b"\n\n")
            for event in events:
                self.resets += b"event: reset" in event.split(b"\n")
                if found := re.search(rb"\nid: ((\d+)-(\d+))\Z", event):
                    self.last_id = found[1].decode()
                    self.seen.append((int(found[2]), int(found[3])))
        if not received:
            self.cut()


class Soak:
    """Clients, faults, and the books about both."""

    def __init__(self, clients: int) -> None:
        self.server, self.selector = Server(clients), selectors.DefaultSelector()
        self.start = int(time.time() * 1000) // 1000 * 1000
        self.clients = [Client(self, list(ROUTES)[n % 3], self.start) for n in range(clients)]
        # (until when, connection, whether the server must close)
        self.strangers: list[tuple[float, socket.socket, bool]] = []
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run_for(self, seconds: float, faults: list[str]) -> None:
        end, next_fault = time.monotonic() + seconds, time.monotonic() + 2
        while (now := time.monotonic()) < end:
            for client in self.clients:
                if not client.connection and client.resume_at < now:
                    client.connect()
                elif client.deaf_until and client.deaf_until < now:
                    client.wake()
            for stranger in [stranger for stranger in self.strangers if stranger[0] < now]:
                self.strangers.remove(stranger)
                self.dismiss(*stranger[1:])
            connected = [
                client for client in self.clients if client.connection and not client.deaf_until
            ]
            if faults and connected and next_fault < now:
                next_fault += 1
                fault = random.choice(faults)
                self.faults[fault] += 1
                getattr(self, fault)(random.choice(connected))
            self.read(0.02)

    def read(self, seconds: float) -> None:
        for key, _ in self.selector.select(seconds):
            key.data.read()

    def leave(self) -> None:
        for client in self.clients:
            client.cut()
        for stranger in self.strangers:
            stranger[1].close()
        self.strangers.clear()

    def dismiss(self, connection: socket.socket, must_be_closed: bool) -> None:
        try:
            while connection.recv(65536):
                pass
        except BlockingIOError:
            if must_be_closed:
                self.wrong.append("a connection without a whole request was still open after 13 s")
        except OSError:
            pass
        connection.close()

    def stranger(self, seconds: float, request: bytes, must_be_closed: bool = False) -> None:
        connection = socket.create_connection(("127.0.0.1", self.server.port), 5)
        connection.sendall(request)
        connection.setblocking(False)
        self.strangers.append((time.monotonic() + seconds, connection, must_be_closed))

    # The faults. Each is given a client that streams.

    def client_closes(self, client: Client) -> None:
        client.cut()

    def client_resets(self, client: Client) -> None:
        client.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.cut()

    def client_half_closes(self, client: Client) -> None:
        client.connection.shutdown(socket.SHUT_WR)

    def client_stops_reading(self, client: Client) -> None:
        client.go_deaf(40)

    def client_talks(self, client: Client) -> None:
        client.connection.send(b"x" * 5000)

    def half_the_clients_close(self, client: Client) -> None:
        for one in random.sample(self.clients, len(self.clients) // 2):
            one.cut()

    def half_request(self, client: Client) -> None:
        self.stranger(13, b"GET /api/events/all HTTP/1.1\r\nHost: loc", must_be_closed=True)

    def silent_connection(self, client: Client) -> None:
        self.stranger(13, b"", must_be_closed=True)

    def garbage(self, client: Client) -> None:
        self.stranger(3, random.randbytes(3000), must_be_closed=False)

    def long_request(self, client: Client) -> None:
        self.stranger(3, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n")

    def unread_page(self, client: Client) -> None:
        self.stranger(1, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def flood(self, client: Client) -> None:
        for _ in range(SPARE * 3):
            self.stranger(1, b"")
        client.cut()

    def server_pauses(self, client: Client) -> None:
        self.server.process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + random.uniform(0.2, 1.5)
        while time.monotonic() < end:
            self.read(0.05)
        self.server.process.send_signal(signal.SIGCONT)

    def server_is_killed(self, client: Client) -> None:
        self.server.end(signal.SIGKILL)
        self.server.start()

    def server_ends(self, client: Client) -> None:
        if status := self.server.end(signal.SIGTERM):
            self.wrong.append(f"exit status {status} at SIGTERM")
        self.server.start()

    def compare(self) -> tuple[int, int, int]:
        """Events that should have come, that did not, and that came twice or out of order.

        The last second does not count. When all leave, a tick has reached some, and is on its way
        to others."""
        goal = max(client.seen[-1] for client in self.clients if client.seen)[0] - 1000
        simulation, truth = sse_dashboard.Simulation(0, INTERVAL), []
        for tick in range(self.start, goal + 1, round(INTERVAL * 1000)):
            truth += [
                (event.type, (tick, number))
                for number, event in enumerate(simulation.events_at(tick), 1)
            ]
        lost = doubled = 0
        for client in self.clients:
            seen = [event_id for event_id in client.seen if event_id[0] <= goal]
            expected = {event_id for kind, event_id in truth if kind in ROUTES[client.route]}
            lost += len(expected - set(seen))
            doubled += len(seen) - len(set(seen))
            doubled += sum(one > other for one, other in pairwise(seen))
        return sum(len(client.seen) for client in self.clients), lost, doubled


STANDING = [
    "client_closes",
    "client_resets",
    "client_half_closes",
    "client_stops_reading",
    "client_talks",
    "half_the_clients_close",
    "half_request",
    "silent_connection",
    "garbage",
    "long_request",
    "unread_page",
    "flood",
    "server_pauses",
]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    options = parser.parse_args()
    random.seed(options.seed)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, options.clients + 2000)), hard))

    soak = Soak(options.clients)
    seconds = options.minutes * 60
    soak.run_for(seconds / 3, [*STANDING, "server_is_killed", "server_ends"])
    soak.leave()
    before = soak.server.usage()
    soak.run_for(seconds * 2 / 3, STANDING)
    # The deaf wake, and all come up to now.
    soak.run_for(sse_dashboard.SEND_TIMEOUT_SECONDS + 35, [])
    soak.leave()
    after = soak.server.usage()
    events, lost, doubled = soak.compare()
    ended = soak.server.status()["ended"]
    soak.server.end(signal.SIGTERM)
    soak.server.errors.seek(0)
    errors = soak.server.errors.read().decode()

    faults = sum(soak.faults.values())
    print(f"{options.minutes:g} minutes, {options.clients} clients, {faults} faults:")
    for fault, count in sorted(soak.faults.items()):
        print(f"  {fault.replace('_', ' '):24}{count:6}")
    reasons = ", ".join(f"{reason} {count}" for reason, count in ended.items() if count)
    print(f"streams ended             {reasons}")
    print(f"refused and come again    {sum(client.refused for client in soak.clients)}")
    print(f"events                    {events} seen, {lost} lost, {doubled} doubled")
    for what, one, other in zip(("threads", "descriptors", "memory, KiB"), before, after):
        print(f"{what:26}{one} at the beginning, {other} at the end")
    soak.wrong += [
        text
        for text, wrong in (
            (f"{lost} events lost", lost),
            (f"{doubled} events doubled", doubled),
            ("a client was told to start over", sum(client.resets for client in soak.clients)),
            ("threads are left", after[0] > before[0]),
            ("descriptors are left", after[1] > before[1]),
            ("memory grew", after[2] > before[2] + GROWTH_KIB),
            ("standard error:\n" + errors, errors),
        )
        if wrong
    ]
    print("\n".join(soak.wrong) or "nothing lost, nothing doubled, nothing left behind")
    return bool(soak.wrong)


if __name__ == "__main__":
    sys.exit(main())
