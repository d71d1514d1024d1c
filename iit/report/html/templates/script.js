"use strict";

// Sorting: a click on a column's name; a second one turns the order around.
const valueOf = (cell) => cell.dataset.value ?? cell.textContent.trim();

const { compare: byText } = new Intl.Collator();

function compare(one, other) {
  const [a, b] = [Number(one), Number(other)];
  if (one === "" || other === "") return (one === "") - (other === "");
  return Number.isNaN(a) || Number.isNaN(b) ? byText(one, other) : a - b;
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const lines = [...table.tBodies[0].rows].map((row) => [valueOf(row.cells[column]), row]);
      lines.sort(([a], [b]) => compare(a, b) * (down ? -1 : 1));
      table.tBodies[0].append(...lines.map(([, row]) => row));
    });
  });
}

// Copying: the whole table in its present order, numbers in full.
const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

async function copy(text) {
  // A page that is opened from a file may have no clipboard.
  if (navigator.clipboard) {
    try { return await navigator.clipboard.writeText(text); } catch { /* The older way follows. */ }
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

for (const table of document.querySelectorAll("table[data-copy]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy as CSV";
  button.addEventListener("click", async () => {
    const lines = [...table.rows].map((row) => [...row.cells].map((cell) => quoted(valueOf(cell))).join(","));
    await copy(lines.join("\n") + "\n");
    button.textContent = `Copied ${lines.length - 1} rows`;
    setTimeout(() => { button.textContent = "Copy as CSV"; }, 2000);
  });
  table.parentElement.after(button);
}

// Filters: each chooses one value of a data attribute. A page shows a few matches, and more on demand.
const STEP = 12;

for (const form of document.querySelectorAll("form[data-for]")) {
  const list = document.getElementById(form.dataset.for);
  const items = [...list.children];
  const choices = [...form.querySelectorAll("select")];
  const more = document.createElement("button");
  more.type = "button";
  more.className = "more";
  more.textContent = `Show ${STEP} more`;
  list.after(more);
  let limit = STEP;
  const show = () => {
    const fits = (item) => choices.every((choice) => !choice.value || item.dataset[choice.dataset.filter] === choice.value);
    const matches = items.filter(fits);
    items.forEach((item) => { item.hidden = true; });
    matches.slice(0, limit).forEach((item) => { item.hidden = false; });
    more.hidden = matches.length <= limit;
    form.querySelector("output").textContent = `${Math.min(limit, matches.length)} of ${matches.length} shown`;
  };
  form.addEventListener("change", () => { limit = STEP; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += STEP; show(); });
  form.hidden = false;
  show();
}

// Values of marks: `data-tip` shows on hover and on focus.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);

function showTip(event) {
  const mark = event.target.closest?.("[data-tip]");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect();
  const left = Math.min(box.left + box.width / 2 + 8, innerWidth - tip.offsetWidth - 8);
  const top = box.top - tip.offsetHeight - 8;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${top < 8 ? box.bottom + 8 : top}px`;
}
for (const name of ["mouseover", "focusin"]) document.addEventListener(name, showTip);
for (const name of ["scroll", "keydown"]) document.addEventListener(name, () => { tip.hidden = true; }, { passive: true });
