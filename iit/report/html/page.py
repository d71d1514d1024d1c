"""The page of a folder."""

import logging
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from iit.report.html import figures
from iit.report.html.folder import open_folder
from iit.report.html.run import claim, examples, numbers, repeat
from iit.result import write_text

log = logging.getLogger(__name__)

TEMPLATES = Environment(
    loader=PackageLoader("iit.report.html"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.globals["plot"] = figures


def write_page(folder: str | Path) -> Path:
    """Write `report.html` to a folder, from the files in it alone, and return its path.

    Raises:
        OSError, ValueError: as `open_folder` does.
    """
    content = open_folder(folder)
    chosen = content.chosen
    sections = figures.first_sections(content)
    if content.kind in ("run", "atlas"):
        sections = [claim(content)]
    sections += figures.where_sections(content)
    if content.job:
        sections.append(claim(content.job)._replace(id="chosen", title="The chosen job"))
    if chosen:
        sections += [*examples(chosen), numbers(chosen), repeat(chosen)]
    template = TEMPLATES.get_template("page.html.j2")
    path = content.path / "report.html"
    write_text(path, template.render(folder=content, sections=sections))
    return path


def save_page(folder: str | Path) -> None:
    """Write the page at the end of a run, and print its path; one that fails costs no result."""
    try:
        print(f"Page: {write_page(folder)}")
    except Exception as error:
        log.warning("There is no page of %s: %s", folder, error)
