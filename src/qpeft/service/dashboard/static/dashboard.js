"use strict";
/* Charts: <div data-usage="circuits"> and <div data-calibration="URL"> around <div data-series="NAME NAME">. */
(() => {
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
  const NAMES = { readout: "readout", single: "single-qubit gate", t1: "T1", t2: "T2" };
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const ink = dark ? "#9aa4b0" : "#5b6470", line = dark ? "#2c333c" : "#dfe3e8";

  function draw(place, x, series, time) {
    const bars = uPlot.paths.bars({ size: [0.6, 40] });
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const edge = time ? 43200 : 1;
    const options = {
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "UTC"), width: place.clientWidth || 500, height: 230, scales: { x: { time, range: (_, low, high) => [low - edge, high + edge] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [axis, { ...axis, size: 64 }], legend: { live: false },
      series: [{}, ...series.map((one, k) => ({
        label: one.name, stroke: COLOURS[k % 6], fill: time ? COLOURS[k % 6] : undefined, width: time ? 1 : 1.5,
        paths: time ? bars : () => null, points: { show: !time, size: 5, fill: COLOURS[k % 6] },
      }))],
    };
    const chart = new uPlot(options, [x, ...series.map((one) => one.values)], place);
    new ResizeObserver(() => chart.setSize({ width: place.clientWidth, height: 230 })).observe(place);
  }

  async function read(url) {
    const answer = await fetch(url, { credentials: "same-origin" });
    return answer.ok ? answer.json() : null;
  }

  async function usage() {
    const places = document.querySelectorAll("[data-usage]");
    if (!places.length) return;
    const found = await read("/data/usage");
    if (!found) return;
    for (const place of places) {
      const devices = Object.entries(found.devices).map(([name, all]) => [name, all[place.dataset.usage]]);
      const above = (k, day) => devices.slice(k).reduce((sum, [, used]) => sum + used[day], 0) || null; // stacked: later ones stand in front, lower
      const series = devices.map(([name], k) => ({ name, values: found.days.map((_, day) => above(k, day)) }));
      if (series.length) draw(place, found.days, series, true);
      else place.textContent = "Nothing was used.";
    }
  }

  async function calibration() {
    for (const group of document.querySelectorAll("[data-calibration]")) {
      const found = await read(group.dataset.calibration);
      if (!found) continue;
      for (const place of group.querySelectorAll("[data-series]")) {
        draw(place, found.qubits, place.dataset.series.split(" ").map((name) => ({ name: NAMES[name], values: found[name] })), false);
      }
    }
  }

  usage();
  calibration();
})();
