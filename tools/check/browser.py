"""Open every page of the built site in a headless browser, wide and narrow, light and dark.

    python -m sphinx -W -b html docs SITE
    python tools/check/browser.py SITE                            # all pages: 2 minutes
    python tools/check/browser.py SITE --pages "guide/*" --screenshots SHOTS

Reports errors in the console, requests that fail or leave the site, pictures that are not drawn,
links whose page or heading is not there, pages that scroll sideways, and a search that finds
nothing. The exit status is 1 if there is any. Needs Chromium (`apt install chromium`), which is
spoken to through a pipe, so that nothing else has to be installed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BROWSERS = "chromium", "chromium-browser", "google-chrome"
VIEWS = {"wide": (1440, 900), "narrow": (390, 844)}
SCHEMES = "light", "dark"
SECONDS = 60.0  # at most for a page, on a busy machine
SEARCHED = "softcap"
TALL = 4000  # pixels of a screenshot

# What is wrong with the page as it is shown now.
LOOK = """(() => {
  const wrong = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.querySelectorAll("body *")].filter(e =>
      e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.className || e.tagName);
    wrong.push(`scrolls sideways: ${root.scrollWidth} of ${root.clientWidth}, ${wide.slice(-2)}`);
  }
  for (const image of document.images)
    if (image.complete && !image.naturalWidth) wrong.push(`no picture: ${image.src}`);
  return wrong;
})()"""
LINKS = "[...document.links].map(a => a.href)"
NAMES = "[...document.querySelectorAll('[id]')].map(e => e.id)"
FOUND = "document.querySelectorAll('#search-results li').length"
LOAD_PICTURES = "for (const image of document.images) image.loading = 'eager'"


class Browser:
    """A headless Chromium, spoken to in its DevTools protocol through a pipe."""

    def __init__(self, program: str, home: str) -> None:
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += ["--disable-dev-shm-usage", f"--user-data-dir={home}"]
        start = 'exec 8<&"$0" 9>&"$1" 3<&8 4>&9; shift; exec "$@" --remote-debugging-pipe'
        self._process = subprocess.Popen(
            ["bash", "-c", start, str(read), str(write), *command],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda said: said.get("id") == self._number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def evaluate(self, code: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.ask("Runtime.evaluate", expression=code, returnByValue=True)
        return result["result"].get("value")

    def open(self, address: str) -> None:
        """Load a page; `events` are those since."""
        self.events.clear()
        self.ask("Page.navigate", url=address)
        loaded = "Page.loadEventFired"
        if not any(event["method"] == loaded for event in self.events):
            self._until(lambda said: said.get("method") == loaded)

    def show(self, width: int, height: int, scheme: str) -> None:
        """Resize the page, and choose light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.ask("Emulation.setEmulatedMedia", features=[feature])
        self.ask("Runtime.evaluate", expression=SETTLE, awaitPromise=True)

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read messages up to the one that is wanted; keep the events among them."""
        end = time.monotonic() + SECONDS
        while True:
            message, mark, rest = self._buffer.partition(b"\0")
            if mark:
                self._buffer = rest
                said: dict[str, Any] = json.loads(message)
                if "method" in said:
                    self.events.append(said)
                if wanted(said):
                    return said
            elif select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                self._buffer += os.read(self._read, 1 << 20)
            else:
                raise TimeoutError(f"the browser said nothing for {SECONDS:.0f} s")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


# Two frames later the page has its new size.
SETTLE = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Quiet(SimpleHTTPRequestHandler):
    """Serves the site without a line for each request."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site at an address of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--pages", default="*", metavar="GLOB", help="of their paths; default all")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="a picture of each view")
    options = parser.parse_args(arguments)
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if program is None:
        parser.error(f"no browser: one of {', '.join(BROWSERS)} must be installed")
    found = [page.relative_to(options.site) for page in sorted(options.site.rglob("*.html"))]
    pages = [str(page) for page in found if page.parts[0] != "_static"]  # parts of the theme
    wanted = [page for page in pages if fnmatch(page, options.pages)]
    if not wanted:
        parser.error(f"--pages {options.pages}: no such page in {options.site}")
    # Helpers of the browser may still write there when it has ended.
    keep = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with keep as home, served(options.site) as root:
        browser = Browser(program, home)
        try:
            wrong = look(browser, root, wanted, set(pages), options.screenshots)
        finally:
            browser.close()
    for page, problem in wrong:
        print(f"{page}: {problem}")
    print(f"{len(wanted)} pages, {len(wrong)} problems")
    return 1 if wrong else 0


def look(
    browser: Browser, root: str, wanted: list[str], pages: set[str], folder: Path | None
) -> list[tuple[str, str]]:
    """Open pages, and return what is wrong with each."""
    wrong: list[tuple[str, str]] = []
    links: dict[str, list[str]] = {}
    names: dict[str, set[str]] = {}
    for page in wanted:
        browser.open(root + page)
        browser.evaluate(LOAD_PICTURES)
        problems = []
        for view, size in VIEWS.items():
            for scheme in SCHEMES:
                browser.show(*size, scheme)
                seen = browser.evaluate(LOOK)
                problems += [f"{view}, {scheme}: {problem}" for problem in seen]
                if folder:
                    shoot(browser, folder / view / scheme / page.replace("/", "-"), size[0])
        problems += [said(event, root) for event in browser.events]
        links[page], names[page] = browser.evaluate(LINKS), set(browser.evaluate(NAMES))
        wrong += [(page, problem) for problem in dict.fromkeys(problems) if problem]
    for page, targets in links.items():
        wrong += [(page, p) for t in dict.fromkeys(targets) if (p := dead(t, root, pages, names))]
    if "search.html" in wanted:
        wrong += [("search.html", problem) for problem in search(browser, root)]
    return wrong


def said(event: dict[str, Any], root: str) -> str:
    """What is wrong by an event of the browser, nothing in most cases."""
    method, facts = event["method"], event["params"]
    if method == "Runtime.exceptionThrown":
        return f"exception: {facts['exceptionDetails'].get('text', '')}"
    if method == "Log.entryAdded" and facts["entry"]["level"] == "error":
        return f"console: {facts['entry']['text']} {facts['entry'].get('url', '')}"
    if method == "Runtime.consoleAPICalled" and facts["type"] == "error":
        return f"console: {facts['args'][0].get('value', '')}"
    if method == "Network.requestWillBeSent":
        address = facts["request"]["url"]
        return "" if address.startswith((root, "data:", "about:")) else f"asks for {address}"
    return ""


def dead(target: str, root: str, pages: set[str], names: dict[str, set[str]]) -> str:
    """Why a link within the site leads nowhere."""
    if not target.startswith(root):
        return ""
    path, _, name = target.removeprefix(root).partition("#")
    path = path.partition("?")[0]
    path = path + "index.html" if not path or path.endswith("/") else path
    if path.endswith(".html") and path not in pages:
        return f"link to a page that is not there: {path}"
    if name and path in names and name not in names[path]:
        return f"link to a heading that is not there: {path}#{name}"
    return ""


def search(browser: Browser, root: str) -> list[str]:
    """Look for a word that is on several pages."""
    browser.open(f"{root}search.html?q={SEARCHED}")
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if browser.evaluate(FOUND):
            return []
        time.sleep(0.1)
    return [f"a search for {SEARCHED} finds nothing"]


def shoot(browser: Browser, file: Path, width: int) -> None:
    """Save a picture of the page from its top."""
    height = min(TALL, browser.evaluate("document.documentElement.scrollHeight"))
    part = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    options = {"format": "jpeg", "quality": 70, "clip": part, "captureBeyondViewport": True}
    picture = browser.ask("Page.captureScreenshot", **options)["data"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".jpg").write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    sys.exit(main())
