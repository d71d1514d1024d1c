for (const svg of document.querySelectorAll(".figure .plot svg")) {
  const marks = [...svg.querySelectorAll(".mark")];
  for (const mark of marks) {
    const title = mark.querySelector("title");
    mark.dataset.tip = title.textContent;
    title.remove();
  }
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = marks[marks.indexOf(event.target.closest(".mark")) + step];
    if (!step || !next) return;
    event.preventDefault();
    event.target.closest(".mark").tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
