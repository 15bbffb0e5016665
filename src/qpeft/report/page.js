// Click a heading to sort its table by that column; click again for the other direction.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const text = (row.cells[column].dataset.sort ?? row.cells[column].textContent).trim();
        const times = [...text.matchAll(/([\d.]+) (h|min|s)\b/g)];
        if (times.length) return times.reduce((sum, [, n, unit]) => sum + n * { h: 3600, min: 60, s: 1 }[unit], 0);
        const number = parseFloat(text.replaceAll(",", "").replace("−", "-"));
        return Number.isNaN(number) ? text : number;
      };
      const sign = down ? -1 : 1;
      const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
      body.append(...[...body.rows].sort((a, b) => sign * order(value(a), value(b))));
    });
  }
}
