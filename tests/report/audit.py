"""What a page lacks for people who see it otherwise: names, tables, and contrast.

`python -m tests.report.audit PAGE` prints it. axe-core finds more, and is no dependency.
"""

import argparse
import sys
from pathlib import Path

from tests.report.browser import DESK, PHONE, Page, browser, missing

NAMES = r"""
const faults = [];
const words = e => (e.textContent || '').trim();
const called = e => {
  const name = e.tagName.toLowerCase() + (e.id ? '#' + e.id : '') +
    (e.getAttribute('class') ? '.' + e.getAttribute('class') : '');
  const around = e.parentElement && e.parentElement.closest('[id]');
  return e.id || !around ? name : `${name} in #${around.id}`;
};
const labelled = e => {
  const ids = (e.getAttribute('aria-labelledby') || '').split(/\s+/).filter(Boolean);
  for (const id of ids)
    if (!document.getElementById(id)) faults.push(`${called(e)}: no element has the id ${id}`);
  return Boolean((e.getAttribute('aria-label') || '').trim()
    || ids.some(id => words(document.getElementById(id) || e)));
};
if (!document.documentElement.lang) faults.push('html has no lang');
if (!document.title.trim()) faults.push('the page has no title');
const ids = new Set();
for (const e of document.querySelectorAll('[id]')) {
  if (ids.has(e.id)) faults.push(`the id ${e.id} stands twice`);
  ids.add(e.id);
}
for (const e of document.querySelectorAll('[aria-labelledby]')) labelled(e);
let level = 0;
for (const e of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
  const next = Number(e.tagName[1]);
  if (next > level + 1) faults.push(`${called(e)} "${words(e)}" comes after h${level}`);
  level = next;
}
if (document.querySelectorAll('h1').length !== 1)
  faults.push(`${document.querySelectorAll('h1').length} h1 on the page, not 1`);
for (const e of document.querySelectorAll('svg')) {
  const hidden = e.closest('[aria-hidden=true]');
  const title = e.querySelector(':scope > title');
  if (!hidden && e.getAttribute('role') !== 'img') faults.push(`${called(e)} has no role=img`);
  if (!hidden && !labelled(e) && !(title && words(title)))
    faults.push(`${called(e)} has no text alternative`);
}
for (const e of document.querySelectorAll('img'))
  if (!e.hasAttribute('alt')) faults.push(`${called(e)} has no alt`);
for (const e of document.querySelectorAll('figure')) {
  const caption = e.querySelector('figcaption');
  if (!caption || !words(caption)) faults.push(`${called(e)} has no caption`);
  if (e.querySelector('svg') && !e.querySelector('table')) faults.push(`${called(e)} has no table`);
}
for (const e of document.querySelectorAll('a, button, summary'))
  if (!words(e) && !labelled(e)) faults.push(`${called(e)} has no name`);
for (const e of document.querySelectorAll('select, input, textarea'))
  if (!e.labels.length && !labelled(e)) faults.push(`${called(e)} has no label`);
for (const e of document.querySelectorAll('table')) {
  if (!e.caption && !labelled(e)) faults.push(`${called(e)} has no caption`);
  for (const head of e.querySelectorAll('thead th'))
    if (!head.scope) faults.push(`${called(e)}: the column ${words(head)} has no scope`);
}
for (const e of document.querySelectorAll('a[href^="#"]'))
  if (!document.getElementById(e.getAttribute('href').slice(1)))
    faults.push(`${e.getAttribute('href')} leads nowhere`);
for (const e of document.querySelectorAll('body *')) {
  const way = getComputedStyle(e).overflowX;
  if ((way === 'auto' || way === 'scroll') && e.scrollWidth > e.clientWidth + 1
      && e.tabIndex < 0 && !e.querySelector('a, button, select, [tabindex]'))
    faults.push(`${called(e)} scrolls, and no key reaches it`);
}
return [...new Set(faults)];
"""

CONTRAST = r"""
const canvas = document.createElement('canvas');
canvas.width = canvas.height = 1;
const context = canvas.getContext('2d', {willReadFrequently: true});
const known = new Map();
const rgba = colour => {
  if (!known.has(colour)) {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    known.set(colour, [...context.getImageData(0, 0, 1, 1).data]);
  }
  return known.get(colour);
};
const over = (top, below, opacity = 1) => {
  const share = top[3] / 255 * opacity;
  return [0, 1, 2].map(k => top[k] * share + below[k] * (1 - share)).concat(255);
};
const luminance = colour => {
  const parts = colour.slice(0, 3).map(value => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const ratio = (one, other) => {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
};
const behind = e => {
  const layers = [];
  for (let p = e; p; p = p.parentElement) {
    const colour = rgba(getComputedStyle(p).backgroundColor);
    if (colour[3]) layers.push(colour);
    if (colour[3] === 255) break;
  }
  const paper = matchMedia('(prefers-color-scheme: dark)').matches && !matchMedia('print').matches
    ? [18, 18, 18, 255] : [255, 255, 255, 255];
  return layers.reverse().reduce((below, top) => over(top, below), paper);
};
const faults = new Map();
const shapesOf = new Map();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let n = 0;
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim();
  const e = walker.currentNode.parentElement;
  if (!text || e.closest('script, style, title, desc') || !e.checkVisibility({
    opacityProperty: true, visibilityProperty: true})) continue;
  const style = getComputedStyle(e);
  const svg = e.closest('svg');
  let ground = behind(svg ? svg.parentElement : e);
  let colour = rgba(style.color);
  if (svg) {
    if (style.fill === 'none') continue;
    colour = rgba(style.fill);
    if (!shapesOf.has(svg)) shapesOf.set(svg, [...svg.querySelectorAll(
      'rect, circle, path, polygon, text')].map(s => [s, s.getBoundingClientRect()]));
    const box = e.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    for (const [shape, area] of shapesOf.get(svg)) {
      if (shape === e || shape.contains(e)) break;
      if (shape.tagName === 'text' || x < area.left || x > area.right || y < area.top ||
          y > area.bottom) continue;
      const paint = getComputedStyle(shape);
      if (paint.fill === 'none' || paint.fill.startsWith('url')) continue;
      ground = over(rgba(paint.fill), ground, Number(paint.fillOpacity) * Number(paint.opacity));
    }
  }
  n += 1;
  const size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  const value = ratio(over(colour, ground), ground);
  if (value < (large ? 3 : 4.5)) {
    const key = `${e.tagName.toLowerCase()}.${e.getAttribute('class') || ''} in ` +
      `${(e.closest('figure, section, nav, header, footer') || {}).id || ''}`;
    if (!faults.has(key)) faults.set(key, `${key}: ${value.toFixed(2)} for "${text.slice(0, 30)}"`);
  }
}
return {n, faults: [...faults.values()]};
"""


def names(page: Page) -> list[str]:
    """What has no name, caption, table or label; what stands twice or leads nowhere."""
    return page.script(NAMES)


def contrast(page: Page) -> list[str]:
    """Texts whose contrast is below 4.5 (3 where they are large), as they are shown now."""
    result = page.script(CONTRAST)
    assert result["n"], "The page shows no text."
    return result["faults"]


def main() -> int:
    """Print the faults of a page."""
    parser = argparse.ArgumentParser(prog="python -m tests.report.audit", description=__doc__)
    parser.add_argument("page", type=Path)
    options = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    if not options.page.is_file():
        parser.error(f"no file {options.page}")
    with browser() as driver:
        page = Page(driver, options.page)
        page.script("for (const e of document.querySelectorAll('details')) e.open = true")
        faults = names(page)
        for width in (PHONE, DESK):
            for scheme in ("light", "dark"):
                page.show(width, scheme)
                faults += [f"{width} px, {scheme}: {fault}" for fault in contrast(page)]
                faults += [f"{width} px, {scheme}: {fault}" for fault in page.overflow()]
            faults += [f"{width} px: {fault}" for fault in names(page) if fault not in faults]
    print("\n".join(faults) or "no fault")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
