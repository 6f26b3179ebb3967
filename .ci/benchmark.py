"""What a client costs: starts the server, streams to N clients, and prints what it took.

    python .ci/benchmark.py [--clients 300] [--rate 2] [--seconds 10]

It prints CPU, memory, latency, and the share of the events that were delivered. Each tick is seven
events. On Linux with two CPUs or more, the server gets the first one and the clients the second,
so that they do not disturb each other. Latency is from the tick's time to the event in the client.
The client reads all streams in one loop, so its own waiting counts against the server.
"""

import argparse
import os
import platform
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import quantiles

SERVER = Path(__file__).resolve().parent.parent / "sse_dashboard.py"
EVENTS = 7  # a tick
PATIENCE_SECONDS = 3  # for the last events to come


class Child:
    """The server, as a child process, pinned to one CPU."""

    def __init__(self, clients: int, interval: float) -> None:
        limits = ["--interval", str(interval), "--max-clients", str(clients + 8)]
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), "--port", "0", *limits], stdout=subprocess.PIPE, text=True
        )
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) > 1:
            os.sched_setaffinity(self.process.pid, {cpus[0]})
            os.sched_setaffinity(0, {cpus[1]})
        assert self.process.stdout
        self.port = int(re.findall(r":(\d+)/", self.process.stdout.readline())[0])

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_kib(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()


class Client:
    """One stream: counts the whole events of the ticks that are measured."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(b"GET /api/events/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self.socket.setblocking(False)
        self.rest, self.events, self.open = b"", 0, True

    def read(self, first: float, last: float, latencies: list[float]) -> None:
        received = self.socket.recv(65536)
        now = time.time() * 1000
        self.open = bool(received)
        whole, _, self.rest = (self.rest + received).rpartition(b"\n\n")
        ticks = [int(tick) for tick in re.findall(rb"\nid: (\d+)-", whole)]
        measured = [tick for tick in ticks if first <= tick < last]
        self.events += len(measured)
        latencies += [now - tick for tick in set(measured)]


def measure(clients: int, rate: float, seconds: float) -> None:
    interval = 1 / rate
    with Child(clients, interval) as server:
        time.sleep(1)
        idle_kib = server.memory_kib()
        selector, streams, latencies = selectors.DefaultSelector(), [], []
        for _ in range(clients):
            streams.append(Client(server.port))
            selector.register(streams[-1].socket, selectors.EVENT_READ, streams[-1])

        interval_ms = round(interval * 1000)
        first = (time.time() * 1000 // interval_ms + 1 + 1000 // interval_ms) * interval_ms
        last = first + round(seconds * 1000 / interval_ms) * interval_ms
        expected = clients * EVENTS * (last - first) / interval_ms

        def read_until(moment: float, enough: float = float("inf")) -> None:
            while (left := moment / 1000 - time.time()) > 0:
                if sum(stream.events for stream in streams) >= enough:
                    break
                for key, _ in selector.select(min(left, 0.1)):
                    key.data.read(first, last, latencies)
                    if not key.data.open:
                        selector.unregister(key.fileobj)

        read_until(first - interval_ms / 2)  # between two ticks the server is at rest
        before = server.cpu_seconds()
        read_until(last - interval_ms / 2)
        cpu, kib = server.cpu_seconds() - before, server.memory_kib() - idle_kib
        read_until(last + PATIENCE_SECONDS * 1000, expected)

    delivered, span = sum(stream.events for stream in streams), (last - first) / 1000
    percent = quantiles(latencies, n=100) if len(latencies) > 1 else [float("nan")] * 99
    each = 1e6 * cpu / max(1, delivered)
    share = 100 * delivered / expected
    ticks = f"{1000 / interval_ms:g} ticks/s of {EVENTS} events"
    idle = f"over {idle_kib / 1024:.0f} MiB with none"
    print(f"{clients} clients, {ticks}, {span:g} s on {machine()}")
    print(f"  CPU for each event      {each:.1f} µs ({100 * cpu / span:.0f} % of one CPU)")
    print(f"  memory for each client  {kib / clients:.1f} KiB ({idle})")
    print(f"  latency                 p50 {percent[49]:.1f} ms, p99 {percent[98]:.1f} ms")
    print(f"  delivered               {share:.1f} % of {expected:.0f} events")


def machine() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [
        platform.machine()
    ]
    return f"{os.cpu_count()} x {names[0]}, {platform.system()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--rate", type=float, default=2.0, help="ticks a second, at most 20")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, options.clients + 64)), hard))
    measure(options.clients, options.rate, options.seconds)


if __name__ == "__main__":
    main()
