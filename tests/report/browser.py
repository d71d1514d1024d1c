"""A page of a report in a real browser: Chromium of the system, without a window or a network.

`apt-get install chromium chromium-driver` brings the browser, the extra `dev` brings selenium.
"""

import base64
import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PHONE, DESK = 390, 1280
TALLEST = 16_000
"""Pixels: Chromium draws no taller picture."""
PROGRAMS = {
    "browser": ("chromium", "chromium-browser", "google-chrome"),
    "driver": ("chromedriver", "chromium.chromedriver"),
}


def program(role: str) -> str | None:
    """The path of the first program that is installed."""
    for name in PROGRAMS[role]:
        if path := shutil.which(name):
            return path
    return None


def missing() -> str | None:
    """What this machine lacks, or None."""
    if importlib.util.find_spec("selenium") is None:
        return "no selenium: pip install selenium"
    for role, names in PROGRAMS.items():
        if program(role) is None:
            return f"no {names[0]}: apt-get install chromium chromium-driver"
    return None


class Page:
    """A file that a browser shows."""

    def __init__(self, driver: Any, path: Path):
        self.driver = driver
        self.address = path.resolve().as_uri()
        self.show()
        for log in ("browser", "performance"):
            driver.get_log(log)  # what an earlier page has left
        driver.get(self.address)

    def command(self, name: str, **arguments: Any) -> dict:
        """A command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def script(self, source: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(source, *arguments)

    def find(self, selector: str) -> list[Any]:
        """The elements that a CSS selector names, in the order of the page."""
        return self.driver.find_elements("css selector", selector)

    def show(self, width: int = DESK, scheme: str = "light", media: str = "screen") -> None:
        """Take a width in pixels, light or dark colours, and screen or print."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1}
        self.command("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.command("Emulation.setEmulatedMedia", media=media, features=features)

    def errors(self) -> list[str]:
        """What stands in the console since the last call, warnings too."""
        levels = ("WARNING", "SEVERE")
        return [
            entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in levels
        ]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call, without the page and what it holds."""
        addresses = []
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            if event["method"] == "Network.requestWillBeSent":
                addresses.append(event["params"]["request"]["url"])
        held = ("data:", "blob:", "about:")
        return [a for a in addresses if a.split("#")[0] != self.address and not a.startswith(held)]

    def overflow(self) -> list[str]:
        """What stands further right than the window ends, where nothing can scroll to it."""
        return self.script(OVERFLOW)

    def picture(self, path: Path, top: int = 0, height: int | None = None) -> None:
        """Write a PNG of the page from `top` on; without a height, of all that is below it."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        left = size["height"] - top
        clip = {"x": 0, "y": top, "width": size["width"], "scale": 1}
        clip["height"] = min(left, height or TALLEST)
        data = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def height(self) -> int:
        """Of the whole page, in pixels."""
        return round(self.command("Page.getLayoutMetrics")["cssContentSize"]["height"])


OVERFLOW = """
const width = document.documentElement.clientWidth;
const scrolls = e => {
  for (let p = e.parentElement; p && p !== document.documentElement; p = p.parentElement) {
    if (p === document.body) return false;
    if (getComputedStyle(p).overflowX !== 'visible') return true;
  }
  return false;
};
const faults = [];
if (document.documentElement.scrollWidth > width)
  faults.push(`page: ${document.documentElement.scrollWidth} px in a window of ${width} px`);
for (const e of document.body.querySelectorAll('*')) {
  const box = e.getBoundingClientRect();
  // Words that do not break stand out of a box that is narrow enough.
  const words = getComputedStyle(e).overflowX === 'visible' && e.clientWidth &&
    [...e.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
  const right = words ? Math.max(box.right, box.left + e.scrollWidth) : box.right;
  if (box.width && right > width + 1 && !e.closest('svg svg, svg *') && !scrolls(e)) {
    const around = e.closest('[id]');
    const name = `${e.tagName.toLowerCase()}.${e.getAttribute('class') || ''}`;
    faults.push(`${name} in #${around ? around.id : ''} ends at ${Math.round(right)} px`);
  }
}
return faults;
"""


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A driver of Chromium, closed at the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program("browser") or ""
    arguments = [
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        # No name is known, and whoever has an address meets a proxy that is not there.
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--proxy-server=127.0.0.1:9",
    ]
    if hasattr(os, "getuid") and os.getuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses its sandbox to root
    for argument in arguments:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program("driver")))
    try:
        yield driver
    finally:
        driver.quit()
