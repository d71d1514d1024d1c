"""`python -m tests.report.screenshots PAGE FOLDER`: pictures of a page, and what is wrong with it.

It writes PAGE's name with width and colours: `report-390-dark.png`. Widths are 390 and 1280 pixels,
colours light and dark; `report-print.png` and `report.pdf` are the page in print. What the console
says, what is asked for from a network, and what overflows is printed; then the status is 1.
"""

import argparse
import base64
import sys
from pathlib import Path

from tests.report.browser import DESK, PHONE, Page, browser, missing

PRINTED = 720
"""Pixels: the width of A4 between its margins."""


def main(arguments: list[str] | None = None) -> int:
    """Take the pictures; 1 where the page has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.report.screenshots", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("page", type=Path, help="an HTML file")
    parser.add_argument("folder", type=Path, help="where the pictures go; made if need be")
    parser.add_argument("--widths", type=int, nargs="+", default=[PHONE, DESK], help="in pixels")
    parser.add_argument("--schemes", nargs="+", default=["light", "dark"])
    parser.add_argument("--part", type=int, help="cut pages into parts of so many pixels of height")
    parser.add_argument("--first", action="store_true", help="the first part only")
    options = parser.parse_args(arguments)
    if reason := missing():
        parser.error(reason)
    if not options.page.is_file():
        parser.error(f"no file {options.page}")

    options.folder.mkdir(parents=True, exist_ok=True)
    with browser() as driver:
        page = Page(driver, options.page)
        name = options.page.stem
        faults = []
        for width in options.widths:
            for scheme in options.schemes:
                page.show(width, scheme)
                take(page, options.folder / f"{name}-{width}-{scheme}", options.part, options.first)
            faults += [f"{width} px: {fault}" for fault in page.overflow()]
        page.show(PRINTED, media="print")
        take(page, options.folder / f"{name}-print", options.part, options.first)
        pdf = page.command("Page.printToPDF", printBackground=True)["data"]
        (options.folder / f"{name}.pdf").write_bytes(base64.b64decode(pdf))
        faults += [f"console: {message}" for message in page.errors()]
        faults += [f"request: {address}" for address in page.requests()]

    for fault in faults:
        print("FAULT", fault)
    return int(bool(faults))


def take(page: Page, stem: Path, part: int | None, first: bool) -> None:
    """Write the pictures of a page as it is shown now."""
    if part is None:
        page.picture(stem.with_suffix(".png"), height=900 if first else None)
        print(stem.with_suffix(".png"))
        return
    for number, top in enumerate(range(0, page.height(), part), 1):
        path = stem.with_name(f"{stem.name}-{number}.png")
        page.picture(path, top, part)
        print(path)
        if first:
            return


if __name__ == "__main__":
    sys.exit(main())
