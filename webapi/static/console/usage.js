// The tokens of each day, as the page has them.
import { chart } from "./charts.js";

const DAY = 86400;

const figure = document.getElementById("tokens");
if (figure) {
  const days = JSON.parse(figure.dataset.days);
  const series = [
    { label: "Prompt", colour: "chart-2" },
    { label: "Completion", colour: "chart-1", fill: true },
  ];
  const drawn = chart(figure, { series });
  const asked = (name) => Date.parse(`${figure.dataset[name]}T00:00Z`) / 1000;
  const last = asked("to");
  // Of a range without an end only what there is is drawn, up to ten years of it.
  const first = Math.max(asked("from"), Math.min(days[0].at, last - 30 * DAY), last - 3650 * DAY);
  const found = new Map(days.map((day) => [day.at, day]));
  const xs = [];
  // Days without a row are days on which nothing ended.
  for (let at = first; at <= last; at += DAY) xs.push(at);
  // At noon UTC, so that the chart names the same day wherever it is read.
  drawn.show(xs.map((at) => at + DAY / 2), ["prompt", "completion"].map((name) => xs.map((at) => found.get(at)?.[name] ?? 0)));
}
