// Charts over time, and bars: uPlot in the colours of the page, each with its last values in words below it.
// A page that has them loads vendor/uplot-1.6.32.min.css and, deferred, uplot-1.6.32.min.js before this.
import { count, make } from "./console.js";

const drawn = new Set();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/**
 * Make a chart in a `figure.chart` that has a `.plot` and a `figcaption`.
 *
 * `series`: [{ label, colour: "chart-1", fill: true }]; `format`: a number in words; `bars`: columns instead of lines,
 * over names `show(xs, values, names)` gives; `top`: the largest value that is always shown; `log`: each line of the grid
 * is ten times the one below.
 * Returns `{ show }`; `show(xs, values)` takes seconds since 1970 and a list of values for each series.
 */
export function chart(figure, { series, format = count, bars = false, top = 0, log = false }) {
  const one = { plot: figure.querySelector(".plot"), caption: figure.querySelector("figcaption") };
  const title = figure.getAttribute("aria-label") ?? figure.querySelector("h2")?.textContent ?? "";
  Object.assign(one, { series, format, bars, top, log, title, data: null, names: [], made: null, colours: "" });
  one.values = series.map(() => make("strong"));
  one.caption.replaceChildren(
    ...series.map(({ label, colour: name }, n) =>
      make("span", {}, make("span", { className: `swatch step-${name.slice(-1)}` }), `${label} `, one.values[n]),
    ),
  );
  one.plot.setAttribute("role", "img");
  drawn.add(one);
  new ResizeObserver(() => fit(one)).observe(one.plot);
  return {
    show(xs, values, names = []) {
      one.data = [xs, ...values];
      one.names = names;
      if (one.made) one.made.setData(one.data);
      else draw(one);
      tell(one, null);
    },
  };
}

function draw(one) {
  one.made?.destroy();
  one.plot.replaceChildren();
  const stroke = colour("quiet");
  const grid = { stroke: colour("line"), width: 1 };
  const axis = { stroke, grid, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  one.made = new uPlot(
    {
      width: one.plot.clientWidth,
      height: one.plot.clientHeight,
      padding: [8, 16, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      hooks: { setCursor: [(made) => tell(one, made.cursor.idx)] },
      scales: {
        x: { time: !one.bars, ...(one.bars && { range: (_, from, to) => [from - 0.6, to + 0.6] }) },
        y: one.log ? { distr: 3, range: decades } : { range: (_, from, to) => [0, Math.max(to ?? 0, one.top, 1e-9) * 1.05] },
      },
      axes: [
        { ...axis, grid: { show: false }, space: one.bars ? 28 : 64, size: 26, ...(one.bars ? named(one) : clock) },
        { ...axis, size: 52, space: 32, ...(one.log && { splits: tens, filter: (_, ticks) => ticks }), values: (_, ticks) => ticks.map(one.format) },
      ],
      series: [{}, ...one.series.map((given) => line(one, given))],
    },
    one.data,
    one.plot,
  );
}

/** Return the powers of ten around values; milliseconds to seconds where there are none. */
function decades(_, from, to) {
  if (!(to > 0)) return [0.001, 1];
  const [low, high] = [Math.floor(Math.log10(from)), Math.ceil(Math.log10(to))];
  return [10 ** low, 10 ** Math.max(high, low + 1)];
}

function tens(_, axis, from, to) {
  const first = Math.round(Math.log10(from));
  return Array.from({ length: Math.round(Math.log10(to)) - first + 1 }, (_, n) => 10 ** (first + n));
}

const clock = {
  values: [
    [86400, "{D} {MMM}", null, null, null, null, null, null, 1],
    [60, "{HH}:{mm}", "\n{D} {MMM}", null, null, null, null, null, 1],
    [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 1],
  ],
  size: 40,
};

function named(one) {
  return {
    splits: () => one.data[0],
    // Of a range only its end: ten ranges do not fit beside each other.
    values: (_, ticks) => ticks.map((tick) => (one.names[tick] ?? "").replace(/^.*–/, "≤")),
  };
}

function line(one, { label, colour: name, fill }) {
  const stroke = colour(name);
  const made = { label, stroke, width: 1.75, points: { show: !one.bars && undefined }, spanGaps: false };
  if (one.bars) return { ...made, fill: stroke, width: 0, paths: uPlot.paths.bars({ size: [0.7, 48] }) };
  return fill ? { ...made, fill: `${stroke}22` } : made;
}

function fit(one) {
  if (!one.made || !one.plot.clientWidth) return;
  one.made.setSize({ width: one.plot.clientWidth, height: one.plot.clientHeight });
}

/** Say the values at a point, or the last ones. */
function tell(one, index) {
  const said = one.series.map((_, n) => {
    const values = one.data[n + 1];
    return one.bars && index === null ? null : values[index ?? values.findLastIndex((value) => value !== null)];
  });
  said.forEach((value, n) => {
    const words = one.format(value);
    one.values[n].textContent = one.bars && index !== null ? `${one.names[index]}: ${words}` : one.bars ? "" : words;
  });
  if (index === null) one.plot.setAttribute("aria-label", summary(one, said));
}

function summary(one, said) {
  if (one.bars) return `${one.title}: ${one.names.map((name, n) => `${name}: ${one.format(one.data[1][n])}`).join(", ")}`;
  const parts = one.series.map(({ label }, n) => {
    const highest = one.data[n + 1].reduce((most, value) => (value > (most ?? -1) ? value : most), null);
    return `${label} ${one.format(said[n])}, at most ${one.format(highest)}`;
  });
  return `${one.title}: ${parts.join("; ")}`;
}

function repaint() {
  for (const one of drawn) if (one.made) draw(one);
}

document.addEventListener("stoker:theme", repaint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
