"""Pages in Chromium: what a reader sees, clicks, copies and prints.

A machine without the browser skips these tests, and says what is missing. `make test` looks at the
page of a run, `make test-long` also at those of a sweep, an atlas, maps and steering.
"""

import csv
import io
import json
import math
import re

import pytest

from iit.result import read_metrics
from tests.report import audit
from tests.report.browser import DESK, PHONE, Page, browser, missing
from tests.report.pages import KINDS, outcomes, page_of

pytestmark = pytest.mark.skipif(bool(missing()), reason=str(missing()))

LIMITS = {"run": 2, "sweep": 2, "atlas": 6, "maps": 6, "steering": 2}
"""{kind: the most that its page may take, in MB}."""
A4 = 720
"""Pixels: the width of A4 between its margins."""


@pytest.fixture(scope="module")
def driver():
    with browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    page_of(request.param, folder)
    return folder


@pytest.fixture
def page(driver, folder):
    return Page(driver, folder / "report.html")


every_kind = pytest.mark.parametrize(
    "folder",
    [kind if kind == "run" else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS],
    indirect=True,
)
a_run = pytest.mark.parametrize("folder", ["run"], indirect=True)


@every_kind
def test_it_loads_alone_and_fits_its_window(page, folder):
    kind = next(kind for kind in KINDS if folder.name.startswith(kind))
    assert (folder / "report.html").stat().st_size <= LIMITS[kind] * 1e6
    for width in (PHONE, DESK):
        page.show(width)
        assert page.overflow() == []
    assert page.errors() == []
    assert page.requests() == []
    # What a page links to, such as a sweep's jobs, is there.
    for link in page.script("return [...document.links].map(link => link.getAttribute('href'))"):
        assert link.startswith("#") or (folder / link).is_file()


def test_what_a_page_would_ask_for_and_what_goes_wrong_is_seen(driver, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        '<div style="width: 700px">wide</div><p style="color: #aaa">faint</p>'
        '<figure><svg width="9" height="9"></svg></figure><button></button>'
        '<img src="http://example.com/pixel.png"><script>undefined.name</script>'
    )
    page = Page(driver, path)
    page.show(PHONE)
    assert any("700 px" in fault or "708 px" in fault for fault in page.overflow())
    assert any("TypeError" in message for message in page.errors())
    assert page.requests() == ["http://example.com/pixel.png"]
    faults = "\n".join(audit.names(page))
    for expected in ("no alt", "button has no name", "no text alternative", "no caption", "lang"):
        assert expected in faults
    (faint,) = audit.contrast(page)
    assert '2.32 for "faint"' in faint


@every_kind
def test_every_figure_is_drawn_and_stands_in_a_table(page):
    figures = page.script(FIGURES)
    assert figures
    for figure in figures:
        assert figure["width"] > 50, figure
        assert figure["height"] > 20, figure
        assert figure["marks"] > 0, figure
        assert figure["name"], figure
        assert figure["rows"] > 0, figure
        assert not re.search(r"NaN|undefined|Infinity|\bnan\b|\binf\b", figure["source"]), figure


FIGURES = """
const figures = [];
for (const figure of document.querySelectorAll('figure')) {
  const svg = figure.querySelector('svg[role=img]');
  const box = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
  let marks = 0;
  for (const e of svg ? svg.querySelectorAll('rect, circle, path, line, polyline') : []) {
    const {width, height} = e.getBBox();
    marks += width > 0 || height > 0;
  }
  const ids = (svg && svg.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean);
  figures.push({
    id: figure.id, width: box.width, height: box.height, marks: marks,
    name: ids.map(id => document.getElementById(id).textContent).join(' ').trim(),
    rows: figure.querySelectorAll('tbody tr').length,
    source: svg ? svg.outerHTML : '',
  });
}
return figures;
"""


@every_kind
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everyone_can_read_it(page, scheme):
    page.show(DESK, scheme)
    page.script("for (const part of document.querySelectorAll('details')) part.open = true")
    assert audit.names(page) == []
    assert audit.contrast(page) == []
    # Dark means dark.
    paper = page.script("return getComputedStyle(document.body).backgroundColor")
    shade = sum(int(part) for part in re.findall(r"\d+", paper)[:3]) / (3 * 255)
    assert shade < 0.25 if scheme == "dark" else shade > 0.9


@every_kind
def test_print_is_light_and_cuts_nothing_off(page):
    page.show(A4, "dark", media="print")
    cut = page.script(
        """
        return [...document.querySelectorAll('main *')].filter(e =>
          getComputedStyle(e).overflowX !== 'visible' && e.scrollWidth > e.clientWidth + 1 &&
          e.clientWidth).map(e => `${e.tagName}.${e.className} in #${e.closest('[id]').id}`);
        """
    )
    assert cut == []
    # What is wider than the paper makes Chromium print everything smaller, by half at most.
    assert page.script("return document.documentElement.scrollWidth") < 1.5 * A4
    assert audit.contrast(page) == []
    pdf = page.command("Page.printToPDF")["data"]
    assert len(pdf) > 10_000


@every_kind
def test_the_table_of_every_number_holds_the_rows_of_the_file(page, folder):
    rows = metrics_of(folder)["rows"]
    columns, lines = table(page, "rows")
    figures = ("value", "low", "high", "n")
    shown = sorted(tuple(line[columns.index(name)] for name in figures) for line in lines)
    assert shown == sorted(tuple(text_of(row[name]) for name in figures) for row in rows)


@a_run
def test_the_first_screen_says_what_the_file_says(page, folder):
    (row,) = [
        row
        for row in metrics_of(folder)["rows"]
        if (row["split"], row["subset"], row["metric"]) == ("test", "changing", "iia")
        and row["control"] is None
    ]
    text = page.script("return document.querySelector('main section').innerText")
    for name in ("value", "low", "high"):
        assert f"{row[name]:.3f}" in text or f"{100 * row[name]:.1f}" in text
    assert str(row["n"]) in text
    assert "rank-64 subspace" in text
    assert "block 17" in text
    assert "which of the two names is repeated" in text


@every_kind
def test_the_numbers_of_the_figures_are_in_the_folder(page, folder):
    known = {float(value) for path in folder.rglob("metrics.json") for value in numbers_in(path)}
    shown = page.script(
        """
        return [...document.querySelectorAll('figure td[data-value]')].map(cell => [
          cell.closest('figure').id, cell.dataset.value]);
        """
    )
    assert shown
    strange = {(figure, value) for figure, value in shown if float(value) not in known}
    assert strange == set()


def metrics_of(folder):
    """What `metrics.json` holds; that of a sweep's chosen job, which is the first."""
    path = folder / "metrics.json"
    return json.loads((path if path.exists() else folder / "0" / "metrics.json").read_text())


def numbers_in(path):
    """As they stand, and as a result of an earlier schema is read."""
    rows = [row.to_dict() for row in read_metrics(path).rows]
    return numbers([json.loads(path.read_text()), rows])


def numbers(value):
    """Every number in a JSON object, also one that is a string, such as a row's `draw`."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from numbers(part)
    elif isinstance(value, (int, float)):
        yield value
    elif isinstance(value, str) and number(value) is not None:
        yield number(value)


def text_of(value):
    """A number as the page holds it."""
    return "" if value is None else str(value)


def table(page, name):
    """The names of a table's columns, and its lines with their numbers in full, as they stand."""
    head, *lines = page.script(
        """
        const around = document.getElementById(arguments[0]);
        return [...around.querySelector('table').rows].map(row => [...row.cells].map(
          cell => cell.dataset.value ?? cell.textContent.trim()));
        """,
        name,
    )
    return head, lines


def order_of(texts):
    """What sorting has to give: numbers by size, words by the alphabet, nothing at the end."""
    key = number if all(number(text) is not None for text in texts if text) else str.casefold
    return sorted((text for text in texts if text), key=key) + [text for text in texts if not text]


def number(text):
    try:
        value = float(text)
    except ValueError:
        return None
    return None if math.isnan(value) else value


@every_kind
@pytest.mark.parametrize("way", ["click", "Enter", "Space"])
def test_tables_are_sorted_by_click_and_by_key(page, way):
    from selenium.webdriver.common.keys import Keys

    heads = page.find("#rows thead th")
    columns, lines = table(page, "rows")
    for name in ("value", columns[0]):
        head = heads[columns.index(name)]
        (button,) = head.find_elements("css selector", "button")
        for direction in ("ascending", "descending"):
            if way == "click":
                button.click()
            else:
                page.script("arguments[0].focus()", button)
                page.driver.switch_to.active_element.send_keys(getattr(Keys, way.upper()))
            assert head.get_attribute("aria-sort") == direction
            column = [line[columns.index(name)] for line in table(page, "rows")[1]]
            if name == "value":
                expected = order_of(column)
                if direction == "descending":
                    expected = [text for text in expected if text][::-1]
                    column = [text for text in column if text]
                assert [number(text) for text in column] == [number(text) for text in expected]
        # Other columns do not claim to be sorted, and no row is lost.
        assert len(page.find("#rows th[aria-sort]")) == 1
    assert sorted(table(page, "rows")[1]) == sorted(lines)


@every_kind
def test_copy_as_csv_gives_the_table_as_it_stands(page):
    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    (button,) = [
        button
        for button in page.find("button.copy")
        if page.script("return arguments[0].parentElement.contains(rows)", button)
    ]
    columns, _ = table(page, "rows")
    page.find("#rows thead th")[columns.index("value")].find_element(
        "css selector", "button"
    ).click()
    button.click()
    text = page.driver.execute_async_script(
        """
        const done = arguments[0];
        setTimeout(() => navigator.clipboard.readText().then(done, done), 100);
        """
    )
    head, *lines = csv.reader(io.StringIO(text))
    assert (head, lines) == table(page, "rows")


def shown(page):
    """The pairs that are to be seen: (right or wrong, split)."""
    items = page.script(
        """
        return [...document.querySelectorAll('#pairs > li')].filter(e => e.checkVisibility())
          .map(e => [e.dataset.right, e.dataset.split]);
        """
    )
    return sorted(map(tuple, items))


@a_run
def test_examples_are_filtered_by_click_and_by_key(page):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    pairs = [("right" if row["right"] else "wrong", row["split"]) for row in outcomes()]
    for button in page.find("button.more"):
        button.click()
    assert shown(page) == sorted(pairs)
    right, split = (page.find(f"select[data-filter={name}]")[0] for name in ("right", "split"))
    Select(right).select_by_visible_text("wrong")
    assert shown(page) == sorted(pair for pair in pairs if pair[0] == "wrong")

    page.script("arguments[0].focus()", split)
    page.driver.switch_to.active_element.send_keys("test", Keys.ENTER)
    both = sorted(pair for pair in pairs if pair == ("wrong", "test"))
    assert both
    assert shown(page) == both
    assert page.find("form.filters output")[0].text.startswith(f"{len(both)} of ")
    Select(right).select_by_index(0)
    Select(split).select_by_visible_text("validation")
    assert shown(page) == sorted(pair for pair in pairs if pair[1] == "validation")


@a_run
def test_examples_say_what_the_network_said_with_the_roles_marked(page):
    rows = outcomes()
    wrong = next(row for row in rows if not row["right"])
    # Failures come first, and texts are shown as they are, also `<`.
    first = page.find("#pairs > li")[0]
    assert first.get_attribute("data-right") == "wrong"
    text = page.script("return arguments[0].textContent", first)
    assert "<the store>" in text
    for words in (wrong["label"], wrong["before"], wrong["after"]):
        assert words.strip() in text
    marked = page.script(
        "return [...document.querySelectorAll('#pairs mark')].map(e => e.textContent.trim())"
    )
    assert len(marked) == sum(1 + len(row["sources"]) for row in rows)
    assert all("s2" in mark for mark in marked)


@a_run
def test_the_first_key_leads_past_the_navigation(page):
    from selenium.webdriver.common.keys import Keys

    page.find("body")[0].send_keys(Keys.TAB)
    focused = page.driver.switch_to.active_element
    assert focused.get_attribute("href").endswith("#main")
    assert focused.is_displayed()


@every_kind
def test_marks_tell_their_values_on_hover(page):
    from selenium.webdriver.common.action_chains import ActionChains

    marks = page.find("figure svg [data-tip]")
    if not marks:
        # A `title` in the mark needs no script.
        assert page.find("figure svg .mark > title")
        return
    # The first move scrolls, and scrolling hides what is shown.
    pointer = ActionChains(page.driver).move_to_element(marks[0]).pause(0.3)
    pointer.move_by_offset(0, -300).move_to_element(marks[0]).perform()
    tips = [tip for tip in page.find(".tip") if tip.is_displayed()]
    assert [tip.text for tip in tips] == [marks[0].get_attribute("data-tip")]
