// Panels about the planned prefix: ranks by layer and projection, and the chunks of its file.

import { el, svg } from "./dom.js";
import { bits, bytes, count, nats, percent } from "./format.js";

const MOST_ROWS = 60;
const SHADES = 8;
const PATIENCE_S = 15;

function missing({ plan, contents, failure }) {
  if (!plan) return "This device has no plan yet.";
  if (failure) return `The release could not be read: ${failure}`;
  if (!contents) return "Loading the release…";
  if (contents.version !== plan.version || !contents.ladders[plan.ladder]) {
    return `The last plan was of version ${plan.version}; version ${contents.version} is published now. `
      + "The device's next plan will show it.";
  }
  return null;
}

// The state of each chunk of the plan's file on the device.
export function stateOf(plan, report, nowS) {
  const isAfter = report && report.sequence > plan.sequence && report.adapter === plan.adapter;
  const isSame = isAfter && report.version === plan.version && report.ladder === plan.ladder;
  const came = isSame && ["activated", "fetched"].includes(report.event) ? report.n_rungs : 0;
  const held = Math.max(plan.n_held_rungs || 0, came);
  let rest = "unknown";
  if (isAfter) rest = came ? "open" : "failed";
  else if (nowS - plan.at_s < plan.deadline_s + PATIENCE_S) rest = "coming";
  return (number) => {
    if (number <= held) return "held";
    return number <= plan.n_rungs ? rest : "open";
  };
}

const STATES = {
  held: ["✓ held", "good"],
  coming: ["↓ on its way", "accent"],
  failed: ["✕ not active", "bad"],
  unknown: ["? no report", "warn"],
  open: ["– not planned", "muted"],
};

export function drawChunks({ plan, report, contents, failure, nowS }, width) {
  const empty = missing({ plan, contents, failure });
  if (empty) return { empty };
  const { header_bytes: headerBytes, rungs: chunks } = contents.ladders[plan.ladder];
  const state = stateOf(plan, report, nowS);
  const largest = Math.max(...chunks.map((c) => c.n_bytes));
  const wide = Math.max(40, Math.min(180, width - 380));
  let sum = 8 * headerBytes;
  const rows = chunks.map((chunk, i) => {
    sum += 8 * chunk.n_bytes;
    return chunkRow(chunk, i + 1, sum, state(i + 1), (wide * chunk.n_bytes) / largest, wide, i + 1 === plan.n_rungs);
  });
  const hidden = rows.length - MOST_ROWS;
  const head = ["Chunk", "State", "Bytes", "Sum", "Accuracy", "Loss"].map((c) => el("th", { scope: "col" }, c));
  const table = el("table", { class: "chunks" }, el("caption", { class: "quiet" }, "Chunks of the file, in order"),
    el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.slice(0, MOST_ROWS)));
  const more = hidden > 0 ? [el("p", { class: "muted" }, `${hidden} more chunks are not shown.`)] : [];
  const which = contents.ladders.length > 1 ? `, file ${plan.ladder + 1} of ${contents.ladders.length}` : "";
  return {
    words: `${plan.adapter} version ${plan.version}${which}: ${plan.n_rungs} of ${chunks.length} chunks planned, `
      + `${plan.bits ? `${bits(plan.bits)} to send` : "nothing to send"}; header ${bytes(headerBytes)}.`,
    nodes: [el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Chunks in order" }, table), ...more],
  };
}

function chunkRow(chunk, number, sum, state, long, wide, isLast) {
  const [words, tone] = STATES[state];
  const bar = svg("svg", { width: wide, height: 12, "aria-hidden": "true" },
    svg("rect", { x: 0.5, y: 0.5, width: Math.max(2, long - 1), height: 11, class: `chunk ${state}` }));
  return el("tr", { class: isLast ? "last" : null },
    el("th", { scope: "row" }, number),
    el("td", { class: tone }, words),
    el("td", {}, bar, ` ${count(chunk.n_bytes)}`),
    el("td", {}, bits(sum)),
    el("td", {}, percent(chunk.accuracy)),
    el("td", {}, nats(chunk.loss)));
}

export class Heat {
  // The prefix that is shown; null for the plan's.
  #picked = null;

  constructor(redraw) {
    this.redraw = redraw;
    this.draw = this.draw.bind(this);
  }

  get key() {
    return this.#picked;
  }

  #pick(number) {
    this.#picked = number;
    this.redraw();
  }

  draw({ plan, contents, failure }, width) {
    const empty = missing({ plan, contents, failure });
    if (empty) return { empty };
    const { projections, rungs: chunks } = contents.ladders[plan.ladder];
    if (!projections.length) return { empty: "The ranks of this file could not be read, or it is too large to show." };
    const number = Math.min(this.#picked ?? plan.n_rungs, chunks.length);
    const { ranks } = chunks[number - 1];
    const mean = ranks.reduce((a, b) => a + b, 0) / ranks.length;
    const isPlan = number === plan.n_rungs;
    return {
      words: `Ranks after chunk ${number} of ${chunks.length}${isPlan ? ", as planned" : ""}: mean ${mean.toFixed(2)}, `
        + `from ${Math.min(...ranks)} to ${Math.max(...ranks)}.`,
      nodes: [this.#picker(number, chunks.length, plan.n_rungs), heatTable(projections, ranks, width)],
    };
  }

  // The same input stays, so that it keeps the focus while it is moved.
  #picker(number, n, planned) {
    if (!this.range) {
      this.range = el("input", { type: "range", min: 1, id: "prefix", oninput: () => this.#pick(Number(this.range.value)) });
      this.back = el("button", { type: "button", onclick: () => this.#pick(null) }, "As planned");
      this.picker = el("div", { class: "row" }, el("label", { for: "prefix" }, "Show chunk"), this.range, this.back);
    }
    this.range.max = n;
    this.range.value = number;
    this.range.setAttribute("aria-valuetext", `${number} of ${n}${number === planned ? ", as planned" : ""}`);
    this.back.disabled = this.#picked === null;
    return this.picker;
  }
}

function heatTable(projections, ranks, width) {
  const kinds = [...new Set(projections.map((p) => p.kind))];
  const layers = [...new Set(projections.map((p) => p.layer))].sort((a, b) => a - b);
  const largest = Math.max(1, ...projections.map((p) => p.rank));
  const place = new Map(projections.map((p, i) => [`${p.layer}/${p.kind}`, i]));
  const cell = (layer, kind) => {
    const i = place.get(`${layer}/${kind}`);
    if (i === undefined) return el("td", { class: "none" }, "·");
    const shade = ranks[i] === 0 ? 0 : Math.max(1, Math.round((SHADES * ranks[i]) / largest));
    const title = `${projections[i].name}: ${ranks[i]} of ${projections[i].rank} components`;
    return el("td", { class: `h${shade}`, title }, ranks[i]);
  };
  const head = el("tr", {}, el("th", { scope: "col" }, "layer"), ...kinds.map((k) => el("th", { scope: "col" }, k)));
  const rows = layers.map((layer) => el("tr", {}, el("th", { scope: "row" }, layer), ...kinds.map((k) => cell(layer, k))));
  const table = el("table", { class: "heat" },
    el("caption", { class: "quiet" }, "Rank of each projection, layers down and kinds across"),
    el("thead", {}, head), el("tbody", {}, ...rows));
  const scale = el("p", { class: "scale", "aria-hidden": "true" }, "rank 0 ",
    ...Array.from({ length: SHADES + 1 }, (_, i) => el("span", { class: `h${i}` })), ` ${largest}`);
  const isTall = layers.length > 16;
  return el("div", {}, el("div", {
    class: isTall ? "scroll tall" : "scroll", tabindex: 0, role: "group", "aria-label": "Heat map of ranks",
  }, table), scale);
}
