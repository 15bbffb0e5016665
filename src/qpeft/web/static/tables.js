"use strict";
/* A click on a heading of <table class="sortable"> sorts by that column; another click turns the order round. */
(() => {
  const value = (cell) => {
    const text = (cell.dataset.sort ?? cell.textContent).trim();
    const times = [...text.matchAll(/([\d.]+) (h|min|s)\b/g)];
    if (times.length) return times.reduce((sum, [, n, unit]) => sum + n * { h: 3600, min: 60, s: 1 }[unit], 0);
    const number = parseFloat(text.replaceAll(",", "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  };
  const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  function sort(table, column, down) {
    const headings = table.tHead.rows[0].cells;
    for (const other of headings) other.removeAttribute("aria-sort");
    headings[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0], sign = down ? -1 : 1;
    body.append(...[...body.rows].sort((a, b) => sign * order(value(a.cells[column]), value(b.cells[column]))));
  }
  const chosen = new Map(); // which order a visitor chose, kept when a live part is replaced
  function name(table) {
    const part = table.closest("[data-part]");
    return part && `${part.dataset.part} ${[...part.querySelectorAll("table")].indexOf(table)}`;
  }
  function prepare(root) {
    for (const table of root.querySelectorAll("table.sortable")) {
      for (const heading of table.tHead.rows[0].cells) {
        if (heading.querySelector("button.sort") || !heading.textContent.trim()) continue;
        const button = document.createElement("button");
        button.type = "button";
        button.className = "sort";
        button.append(...heading.childNodes);
        heading.append(button);
      }
      const order = chosen.get(name(table));
      if (order) sort(table, ...order);
    }
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.sort");
    if (!button) return;
    const heading = button.closest("th");
    const table = heading.closest("table"), order = [heading.cellIndex, heading.getAttribute("aria-sort") === "ascending"];
    if (name(table)) chosen.set(name(table), order);
    sort(table, ...order);
  });
  document.addEventListener("qpeft:updated", (event) => prepare(event.detail ?? document));
  prepare(document);
})();
