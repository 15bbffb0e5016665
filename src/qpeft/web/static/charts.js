"use strict";
/* What a chart says under the cursor: the nearest mark with data-tip, in a box next to it. Without scripts <title> says the same. */
(() => {
  let tip = null;
  function hide() {
    tip?.remove();
    tip = null;
  }
  function show(chart, mark, event) {
    const text = mark.dataset.tip;
    if (!tip || tip.parentNode !== chart) {
      hide();
      tip = document.createElement("div");
      tip.className = "tip";
      tip.setAttribute("aria-hidden", "true");
      chart.append(tip);
    }
    tip.textContent = text;
    const box = chart.getBoundingClientRect();
    const x = event.clientX - box.left + chart.scrollLeft, y = event.clientY - box.top;
    tip.style.left = `${Math.max(0, Math.min(x + 14, chart.scrollLeft + box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, y - tip.offsetHeight - 10)}px`;
  }
  function nearest(chart, event) {
    let best = null, least = Infinity;
    for (const mark of chart.querySelectorAll("[data-tip]")) {
      const box = mark.getBoundingClientRect();
      const dx = event.clientX - (box.left + box.right) / 2, dy = event.clientY - (box.top + box.bottom) / 2;
      const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
      const far = inside ? 0 : dx * dx + dy * dy;
      if (far < least) [best, least] = [mark, far];
    }
    return least < 60 * 60 ? best : null;
  }
  document.addEventListener("pointermove", (event) => {
    const chart = event.target.closest?.(".chart");
    const mark = chart && nearest(chart, event);
    if (!mark) return hide();
    show(chart, mark, event);
    for (const row of document.querySelectorAll("[data-run].diff")) row.classList.remove("diff");
    if (mark.dataset.of) document.querySelector(`[data-run="${CSS.escape(mark.dataset.of)}"]`)?.classList.add("diff");
  });
  document.addEventListener("pointerleave", hide);
})();
