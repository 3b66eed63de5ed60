// Charts as SVG, drawn at the width that they have, so that their text keeps its size.

import { svg } from "./dom.js";
import { clock, three } from "./format.js";

const LEFT = 52;
const RIGHT = 12;
const TOP = 20;
const BOTTOM = 24;

// Round numbers that span a range, about `n` of them.
export function ticks(low, high, n) {
  const span = high - low || 1;
  const rough = span / n;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((m) => m * size >= rough);
  const places = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * span; i += 1) places.push(i * step);
  return places;
}

const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];

function timeTicks(from, to, n) {
  const step = TIME_STEPS.find((s) => s * n >= to - from) || 86400 * Math.ceil((to - from) / 86400 / n);
  const zone = -60 * new Date(1000 * from).getTimezoneOffset();
  const times = [];
  for (let t = Math.ceil((from + zone) / step) * step - zone; t <= to; t += step) times.push(t);
  return times;
}

export class Frame {
  // y: {low, high, unit, words}; x: {from, to} in seconds, or nothing for places of equal width.
  constructor({ width, height, y, x, label, margin = RIGHT }) {
    Object.assign(this, { width, height, y, x });
    this.right = width - margin;
    this.bottom = height - (x ? BOTTOM : 12);
    this.node = svg("svg", {
      role: "img", "aria-label": label, width, height, viewBox: `0 0 ${width} ${height}`,
    });
    this.#drawY();
    if (x) this.#drawX();
  }

  xOf(t) {
    const { from, to } = this.x;
    return LEFT + ((t - from) / (to - from || 1)) * (this.right - LEFT);
  }

  yOf(value) {
    const { low, high } = this.y;
    const share = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
    return this.bottom - share * (this.bottom - TOP);
  }

  // Middle and width of the i-th of n places.
  place(i, n) {
    const each = (this.right - LEFT) / n;
    return { middle: LEFT + (i + 0.5) * each, wide: Math.min(34, each * 0.62) };
  }

  add(name, attributes, title) {
    const node = svg(name, attributes);
    if (title) node.append(svg("title", {}, title));
    this.node.append(node);
    return node;
  }

  text(x, y, words, attributes = {}) {
    this.node.append(svg("text", { x, y, ...attributes }, words));
  }

  rule(value, cssClass, words) {
    const y = this.yOf(value);
    this.add("line", { x1: LEFT, x2: this.right, y1: y, y2: y, class: cssClass });
    if (words) this.text(this.right + 5, y + 4, words, { class: "strong" });
  }

  #drawY() {
    const words = this.y.words || three;
    for (const value of ticks(this.y.low, this.y.high, Math.max(2, this.height / 38))) {
      const y = this.yOf(value);
      this.add("line", { x1: LEFT, x2: this.right, y1: y, y2: y, class: "grid" });
      this.text(LEFT - 6, y + 4, words(value), { "text-anchor": "end" });
    }
  }

  #drawX() {
    const times = timeTicks(this.x.from, this.x.to, this.width / 75);
    const words = times.every((t) => t % 60 === 0) ? (t) => clock(t).slice(0, 5) : clock;
    for (const t of times) {
      this.add("line", { x1: this.xOf(t), x2: this.xOf(t), y1: this.bottom, y2: this.bottom + 4, class: "axis" });
      this.text(this.xOf(t), this.height - 5, words(t), { "text-anchor": "middle" });
    }
    this.add("line", { x1: LEFT, x2: this.right, y1: this.bottom, y2: this.bottom, class: "axis" });
  }
}

// The largest of some numbers with room above, and at least `least`.
export function roof(values, least = 0) {
  const high = Math.max(least, ...values.filter(Number.isFinite));
  return high > 0 ? 1.12 * high : 1;
}

// One line with a marker at each point. points: [{t, value, title}].
export function drawSeries(frame, points, { cssClass, marker, step = false }) {
  const placed = points.filter((p) => Number.isFinite(p.value))
    .map((p) => ({ ...p, x: frame.xOf(p.t), y: frame.yOf(p.value) }));
  if (!placed.length) return;
  const path = placed.map((p, i) => {
    if (i === 0) return `M${p.x} ${p.y}`;
    return step ? `H${p.x}V${p.y}` : `L${p.x} ${p.y}`;
  });
  frame.add("path", { d: path.join(""), class: `line ${cssClass}` });
  const shown = placed.length > 60 ? [placed.at(-1)] : placed;
  for (const p of shown) drawMarker(frame, p, marker, cssClass);
}

export function drawMarker(frame, { x, y, title }, marker, cssClass) {
  const around = { class: `dot ${cssClass}` };
  if (marker === "circle") frame.add("circle", { cx: x, cy: y, r: 3.5, ...around }, title);
  else if (marker === "square") frame.add("rect", { x: x - 3.5, y: y - 3.5, width: 7, height: 7, ...around }, title);
  else frame.add("path", { d: `M${x} ${y - 5}L${x + 5} ${y}L${x} ${y + 5}L${x - 5} ${y}Z`, ...around }, title);
}

// Samples of lines, bars and markers, each with its name.
export function legend(entries) {
  return entries.map(([sample, cssClass, words]) => {
    const picture = svg("svg", { width: 30, height: 14, "aria-hidden": "true" });
    const frame = { add: (name, attributes) => picture.append(svg(name, attributes)) };
    if (sample === "bar") {
      frame.add("rect", { x: 8, y: 1, width: 14, height: 12, class: cssClass });
    } else if (sample === "tick") {
      frame.add("line", { x1: 4, x2: 26, y1: 7, y2: 7, class: cssClass });
    } else {
      if (cssClass.includes("series")) frame.add("path", { d: "M1 7H29", class: `line ${cssClass}` });
      drawMarker(frame, { x: 15, y: 7 }, sample, cssClass);
    }
    return [picture, words];
  });
}
