"""Runs the tests of the page in Firefox or in WebKit, as the suite runs them in Chromium.

    python .ci/engines.py firefox [TEST ...]     # Debian: firefox-esr
    python .ci/engines.py webkit [TEST ...]      # Debian: webkit2gtk-driver, xvfb, fonts-dejavu

A TEST is a name within the suite, such as ThePage or ThePage.test_the_first_paint_is_full; without
one it is every test of the page. What these browsers' drivers cannot do, such as to freeze a tab,
is skipped, and its line says so.
"""

import argparse
import base64
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import test_sse_dashboard as suite

MINI_BROWSER = "/usr/lib/*/webkit2gtk-4.*/MiniBrowser"
MASK = 0x55  # of what a client sends by a WebSocket: none is refused
KEYS = {  # by the numbers that WebDriver gives them
    name: chr(0xE000 + number)
    for name, number in {
        "Tab": 0x04, "Enter": 0x06, "Escape": 0x0C, "PageUp": 0x0E, "PageDown": 0x0F, "End": 0x10,
        "Home": 0x11, "ArrowLeft": 0x12, "ArrowUp": 0x13, "ArrowRight": 0x14, "ArrowDown": 0x15,
    }.items()
}  # fmt: skip


# What fails for the sake of the display, and not of the page.
UNFIT = {"webkit": {"test_a_list_that_is_read_stands_still"}, "firefox": set()}


def cannot(what):
    raise unittest.SkipTest(f"this driver cannot do it: {what}")


class Driven(suite.Browser):
    """What the suite asks of its browser in DevTools' words, in those of WebDriver."""

    def cdp(self, command, **parameters):
        kind = parameters.get("type", "")
        if command == "Emulation.setEmulatedMedia":
            if parameters.get("features") or parameters.get("media"):
                cannot(parameters)
        elif command == "Input.dispatchKeyEvent":
            key, action = parameters["key"], "keyUp" if kind == "keyUp" else "keyDown"
            self.act("key", {}, {"type": action, "value": KEYS.get(key, key)})
        elif command == "Input.dispatchMouseEvent":
            x, y = round(parameters["x"]), round(parameters["y"])
            actions = [{"type": "pointerMove", "x": x, "y": y}]
            if kind != "mouseMoved":
                action = "pointerDown" if kind == "mousePressed" else "pointerUp"
                actions.append({"type": action, "button": 0})
            self.act("pointer", {"parameters": {"pointerType": "mouse"}}, *actions)
        elif command != "Network.enable":
            cannot(command)
        return {}

    def act(self, kind, more, *actions):
        self.perform([{"type": kind, "id": kind, **more, "actions": actions}])


class Firefox(Driven):
    """By WebDriver BiDi, whose messages go over a WebSocket (RFC 6455)."""

    def __init__(self):
        self.profile, port = tempfile.mkdtemp(), suite.free_ports(1)[0]
        command = ["firefox-esr", "--headless", "--no-remote", "--profile", self.profile]
        self.process = subprocess.Popen(
            [*command, f"--remote-debugging-port={port}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": self.profile},
        )
        self.last, self.lines = 0, []
        if not suite.eventually(lambda: self.connect(port), 60):
            raise AssertionError("Firefox does not answer")
        self.bidi("session.new", capabilities={})
        self.bidi("session.subscribe", events=["log.entryAdded"])
        first = self.tabs()[0]
        self.tab()  # the focus of the first one is in the address
        self.bidi("browsingContext.close", context=first)

    def connect(self, port):
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=90)
            key = base64.b64encode(os.urandom(16)).decode()
            connection.sendall(
                f"GET /session HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
                f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
                "\r\n".encode()
            )
            self.socket, self.file = connection, connection.makefile("rb")
            head = list(iter(self.file.readline, b"\r\n"))
            return b" 101 " in head[0]
        return False

    def bidi(self, method, **parameters):
        self.last += 1
        text = json.dumps({"id": self.last, "method": method, "params": parameters}).encode()
        size = len(text := text.ljust(126))  # JSON may end with spaces; a length below is a byte
        head = (
            b"\xfe" + size.to_bytes(2, "big")
            if size < 1 << 16
            else b"\xff" + size.to_bytes(8, "big")
        )
        self.socket.sendall(
            b"\x81" + head + bytes([MASK] * 4) + bytes(byte ^ MASK for byte in text)
        )
        while (answer := json.loads(self.receive())).get("id") != self.last:
            self.lines.append(answer["params"])
        if answer["type"] == "error":
            raise AssertionError(f"{method}: {answer['message']}")
        return answer["result"]

    def receive(self):
        whole, last = b"", False
        while not last:
            first, second = self.file.read(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self.file.read(2 if size == 126 else 8), "big")
            whole, last = whole + self.file.read(size), bool(first & 128)
        return whole

    def js(self, expression):
        result = self.bidi(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self.here},
            awaitPromise=True,
            userActivation=True,
        )
        if result["type"] == "exception":
            raise AssertionError(f"{expression}: {result['exceptionDetails']['text']}")
        return json.loads(result["result"].get("value", "null"))

    def tabs(self):
        return [tab["context"] for tab in self.bidi("browsingContext.getTree")["contexts"]]

    def switch(self, handle):
        self.here = handle
        self.bidi("browsingContext.activate", context=handle)

    def call(self, method, path, body=None):
        here = {"context": getattr(self, "here", None)}
        if (method, path) == ("GET", "/window"):
            return self.here
        if path == "/window/handles":
            return self.tabs()
        if path == "/url":
            wait = "none" if body["url"].startswith("http") else "complete"
            return self.bidi("browsingContext.navigate", url=body["url"], wait=wait, **here)
        if path == "/refresh":
            return self.bidi("browsingContext.reload", wait="none", **here)
        if path == "/window/new":
            tab = self.bidi("browsingContext.create", type="tab")["context"]
            size = {"width": 1440, "height": 900}
            self.bidi("browsingContext.setViewport", context=tab, viewport=size)
            return {"handle": tab}
        if (method, path) == ("DELETE", "/window"):
            return self.bidi("browsingContext.close", **here)
        return cannot(path)

    def perform(self, actions):
        self.bidi("input.performActions", context=self.here, actions=actions)

    def cdp(self, command, **parameters):
        here, name = {"contexts": [self.here]}, command.partition(".")[2]
        if name == "setDeviceMetricsOverride":
            size = {"width": parameters["width"], "height": parameters["height"]}
            density = float(parameters["deviceScaleFactor"])
            self.bidi(
                "browsingContext.setViewport",
                context=self.here,
                viewport=size,
                devicePixelRatio=density,
            )
        elif name == "setLocaleOverride":
            self.bidi("emulation.setLocaleOverride", locale=parameters.get("locale"), **here)
        elif name == "setTimezoneOverride":
            zone = parameters.get("timezoneId") or None
            self.bidi("emulation.setTimezoneOverride", timezone=zone, **here)
        elif name == "emulateNetworkConditions":
            offline = {"type": "offline"} if parameters["offline"] else None
            self.bidi("emulation.setNetworkConditions", networkConditions=offline, **here)
        elif name == "addScriptToEvaluateOnNewDocument":
            script = "() => {" + parameters["source"] + "\n}"
            added = self.bidi("script.addPreloadScript", functionDeclaration=script)
            return {"identifier": added["script"]}
        elif name == "removeScriptToEvaluateOnNewDocument":
            self.bidi("script.removePreloadScript", script=parameters["identifier"])
        else:
            return super().cdp(command, **parameters)
        return {}

    def complaints(self):
        """But for the browser's own lines about a request that failed or was cut."""
        self.tabs()  # whatever was said before has come then
        lines = [line["text"] for line in self.lines if line["level"] in ("error", "warn")]
        self.lines.clear()
        own = ("establish a connection to the server", "was interrupted while the page was loading")
        return [line for line in lines if not any(words in line for words in own)]

    def close(self):
        with contextlib.suppress(AssertionError, OSError, ValueError):
            self.bidi("browser.close")
        self.socket.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


class WebKit(Driven):
    """By WebDriver, on a display of its own. Its tabs are windows, for a tab behind another is
    hidden. Without a window manager none of them has the focus."""

    def __init__(self):
        self.profile = tempfile.mkdtemp()
        reading, writing = os.pipe()
        display = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "2800x1600x24"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.screen = subprocess.Popen(display, pass_fds=[writing], **quiet)
        os.close(writing)
        with os.fdopen(reading) as line:
            number = line.readline().strip()
        port = suite.free_ports(1)[0]
        own = {"DISPLAY": f":{number}", "HOME": self.profile, "LANG": "en_US.UTF-8"}
        self.driver = subprocess.Popen(
            ["WebKitWebDriver", f"--port={port}"], env=os.environ | own, **quiet
        )
        self.address, self.session, self.scripts = ("127.0.0.1", port), "", []
        browser = next(Path("/").glob(MINI_BROWSER[1:]))
        options = {"binary": str(browser), "args": ["--automation"]}
        wanted = {"pageLoadStrategy": "none", "webkitgtk:browserOptions": options}
        body = {"capabilities": {"alwaysMatch": wanted}}

        def answers():
            with contextlib.suppress(OSError):
                return self.call("GET", "/status")

        suite.eventually(answers, 20)
        self.session = "/session/" + self.call("POST", "/session", body)["sessionId"]

    def js(self, expression):
        script = (
            "const done = arguments[0];"
            f"(async () => ({expression}))().then(value => done({{value}}),"
            " problem => done({problem: String(problem)}))"
        )
        result = self.call("POST", "/execute/async", {"script": script, "args": []})
        if "problem" in result:
            raise AssertionError(f"{expression}: {result['problem']}")
        return result.get("value")

    def call(self, method, path, body=None):
        if path == "/window/minimize":
            cannot(path)  # without a window manager nothing is minimized
        if path == "/window/new":
            body = {"type": "window"}
        result = super().call(method, path, body)
        if path == "/url" and self.scripts and body["url"].startswith("http"):
            ready = "document.readyState === 'complete' && location.href.startsWith('http')"
            self.until(ready)
            for script in self.scripts:
                self.js(f"(() => {{ {script} }})()")
        return result

    def perform(self, actions):
        self.call("POST", "/actions", {"actions": actions})

    def cdp(self, command, **parameters):
        name = command.partition(".")[2]
        if name == "setDeviceMetricsOverride":
            if parameters["deviceScaleFactor"] != 1 or parameters["width"] < 500:
                cannot(parameters)
            wanted = {name: parameters[name] for name in ("width", "height")}

            def fits():
                has = dict(zip(wanted, self.js("[innerWidth, innerHeight]")))
                outer = self.call("GET", "/window/rect")
                more = {name: outer[name] + wanted[name] - has[name] for name in wanted}
                return has == wanted or self.call("POST", "/window/rect", more) is None

            suite.eventually(fits, 5)
        elif name == "addScriptToEvaluateOnNewDocument":
            if parameters["source"] != suite.HOOK:
                cannot("a script before the page's own")
            self.scripts.append(suite.HOOK)
            return {"identifier": ""}
        elif name == "removeScriptToEvaluateOnNewDocument":
            self.scripts.clear()
        elif not name.endswith("Override") or any(parameters.values()):
            return super().cdp(command, **parameters)
        return {}

    def complaints(self):
        return []  # its driver does not tell

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.call("DELETE", "")
        for process in (self.driver, self.screen):
            process.terminate()
            process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine", choices=("firefox", "webkit"))
    parser.add_argument("tests", nargs="*", metavar="TEST")
    options = parser.parse_args()
    kinds = {"firefox": Firefox, "webkit": WebKit}

    @functools.cache
    def the_browser():
        browser = kinds[options.engine]()
        unittest.addModuleCleanup(browser.close)
        return browser

    suite.the_browser = the_browser
    pages = suite.InABrowser.__subclasses__()
    for page in pages:
        page.__unittest_skip__ = False  # Chromium need not be here
        for name in UNFIT[options.engine] & set(vars(page)):
            setattr(page, name, unittest.skip("no window has the focus")(vars(page)[name]))
    tests = options.tests or [page.__name__ for page in pages]
    loaded = [unittest.defaultTestLoader.loadTestsFromName(name, suite) for name in tests]
    result = unittest.TextTestRunner(verbosity=2).run(unittest.TestSuite(loaded))
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main()
