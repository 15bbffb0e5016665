"use strict";
/* Keeps a page up to date: <body data-live="URL"> names a stream of server-sent events; at each the page is fetched again and the
   elements with data-part are replaced where they changed. A stream that ends is opened again until the server answers. */
(() => {
  const url = document.body.dataset.live, sign = document.getElementById("live");
  if (!url || !window.EventSource) return;
  const seen = new WeakMap(); // part -> its HTML as the server sent it last
  let stream = null, retry = 0, busy = false, again = false, last = 0;

  function say(state) {
    if (!sign || sign.dataset.state === state) return;
    sign.dataset.state = state;
    sign.textContent = sign.dataset[state];
  }
  function inUse(part) {
    const active = document.activeElement;
    return part.contains(active) && active.matches("input, select, textarea");
  }
  const key = (field) => [field.form?.action, field.name, field.type === "checkbox" ? field.value : ""].join("\n");
  function edited(part) { // what the visitor filled in and has not sent
    const found = new Map();
    for (const field of part.querySelectorAll("input[name], select[name], textarea[name]")) {
      const tick = field.type === "checkbox";
      const before = field.tagName === "SELECT" ? [...field.options].find((one) => one.defaultSelected)?.value : field.defaultValue;
      if (tick ? field.checked !== field.defaultChecked : field.value !== (before ?? field.options?.[0]?.value)) found.set(key(field), tick ? field.checked : field.value);
    }
    return found;
  }
  function restore(part, found) {
    for (const field of part.querySelectorAll("input[name], select[name], textarea[name]")) {
      if (!found.has(key(field))) continue;
      if (field.type === "checkbox") field.checked = found.get(key(field));
      else field.value = found.get(key(field));
    }
  }
  function replace(fresh) {
    for (const part of document.querySelectorAll("[data-part]")) {
      const other = fresh.querySelector(`[data-part="${CSS.escape(part.dataset.part)}"]`);
      if (!other || inUse(part) || seen.get(part) === other.innerHTML) continue; // scripts may have changed what was sent
      const same = part.innerHTML === other.innerHTML;
      seen.set(part, other.innerHTML);
      if (same) continue;
      const focus = part.contains(document.activeElement) ? document.activeElement : null;
      const place = focus && [...part.querySelectorAll("a, button, summary, [tabindex]")].indexOf(focus);
      const open = [...part.querySelectorAll("details")].map((one) => one.open);
      const scrolls = [...part.querySelectorAll(".scroll, .chart, .circuit, .chip-map")].map((one) => one.scrollLeft);
      const filled = edited(part);
      part.replaceChildren(...other.childNodes);
      part.querySelectorAll("details").forEach((one, k) => { one.open = open[k] ?? one.open; });
      part.querySelectorAll(".scroll, .chart, .circuit, .chip-map").forEach((one, k) => { one.scrollLeft = scrolls[k] ?? 0; });
      restore(part, filled);
      if (focus) part.querySelectorAll("a, button, summary, [tabindex]")[place]?.focus();
      document.dispatchEvent(new CustomEvent("qpeft:updated", { detail: part }));
    }
  }
  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        await new Promise((done) => setTimeout(done, Math.max(0, last + 400 - Date.now())));
        last = Date.now();
        const answer = await fetch(location.href, { headers: { accept: "text/html" }, credentials: "same-origin" });
        if (answer.redirected) { location.assign(answer.url); return; }
        if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
      } while (again);
    } catch { /* the stream says when the server is back */ } finally { busy = false; }
  }
  function open() {
    clearTimeout(retry);
    stream?.close();
    stream = new EventSource(url);
    stream.onopen = () => { say("on"); refresh(); };
    for (const name of ["change", "tick", "message"]) stream.addEventListener(name, refresh);
    stream.onerror = () => {
      say("lost");
      if (stream.readyState === EventSource.CLOSED) retry = setTimeout(() => { refresh(); open(); }, 2000);
    };
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { clearTimeout(retry); stream?.close(); stream = null; } else if (!stream) open();
  });
  window.addEventListener("pagehide", () => stream?.close());
  open();
})();
