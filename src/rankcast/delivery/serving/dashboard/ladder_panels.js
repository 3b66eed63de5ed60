// Panels about the release that a plan is of: ranks by layer and projection, and its chunks.

import { el, svg } from "./dom.js";
import { bits, bytes, count, nats, percent } from "./format.js";

const MOST_ROWS = 60;
const SHADES = 8;
const PATIENCE_S = 15;

function why({ plan, contents, failure }) {
  if (!plan) return "No plan was given to this device yet.";
  if (failure) return `The release could not be read: ${failure}`;
  if (!contents) return "Asking what the release consists of…";
  if (contents.version !== plan.version || !contents.ladders[plan.ladder]) {
    return `The last plan was of version ${plan.version}; version ${contents.version} is published now. `
      + "The device's next plan will show it.";
  }
  return null;
}

// Which chunks of the plan's ladder the device has: held, coming, failed or unknown.
export function stateOf(plan, report, nowS) {
  const isAfter = report && report.sequence > plan.sequence && report.adapter === plan.adapter;
  const isSame = isAfter && report.version === plan.version && report.ladder === plan.ladder;
  const came = isSame && ["activated", "fetched"].includes(report.event) ? report.n_rungs : 0;
  const held = Math.max(plan.n_held_rungs || 0, came);
  let rest = "unknown";
  if (isAfter) rest = came ? "open" : "failed";
  else if (nowS - plan.at_s < plan.deadline_s + PATIENCE_S) rest = "coming";
  return (rung) => {
    if (rung <= held) return "held";
    return rung <= plan.n_rungs ? rest : "open";
  };
}

const STATES = {
  held: ["✓ held", "good"],
  coming: ["↓ on its way", "accent"],
  failed: ["✕ not in force", "bad"],
  unknown: ["? no report", "warn"],
  open: ["– not planned", "muted"],
};

export function drawLadder({ plan, report, contents, failure, nowS }, width) {
  const empty = why({ plan, contents, failure });
  if (empty) return { empty };
  const { header_bytes: headerBytes, rungs } = contents.ladders[plan.ladder];
  const state = stateOf(plan, report, nowS);
  const largest = Math.max(...rungs.map((r) => r.n_bytes));
  const wide = Math.max(40, Math.min(180, width - 380));
  let sum = 8 * headerBytes;
  const rows = rungs.map((rung, i) => {
    sum += 8 * rung.n_bytes;
    return ladderRow(rung, i + 1, sum, state(i + 1), (wide * rung.n_bytes) / largest, wide, i + 1 === plan.n_rungs);
  });
  const hidden = rows.length - MOST_ROWS;
  const head = ["Rung", "State", "Bytes", "Sum", "Accuracy", "Loss"].map((c) => el("th", { scope: "col" }, c));
  const table = el("table", { class: "ladder" }, el("caption", { class: "quiet" }, "Chunks of the ladder, in order"),
    el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.slice(0, MOST_ROWS)));
  const more = hidden > 0 ? [el("p", { class: "muted" }, `${hidden} further chunks are not shown.`)] : [];
  const which = contents.ladders.length > 1 ? `, file ${plan.ladder + 1} of ${contents.ladders.length}` : "";
  return {
    words: `${plan.adapter} version ${plan.version}${which}: ${plan.n_rungs} of ${rungs.length} rungs planned, `
      + `${plan.bits ? `${bits(plan.bits)} to send` : "nothing to send"}; header ${bytes(headerBytes)}.`,
    nodes: [el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Chunks in order" }, table), ...more],
  };
}

function ladderRow(rung, number, sum, state, long, wide, isLast) {
  const [words, tone] = STATES[state];
  const bar = svg("svg", { width: wide, height: 12, "aria-hidden": "true" },
    svg("rect", { x: 0.5, y: 0.5, width: Math.max(2, long - 1), height: 11, class: `chunk ${state}` }));
  return el("tr", { class: isLast ? "last" : null },
    el("th", { scope: "row" }, number),
    el("td", { class: tone }, words),
    el("td", {}, bar, ` ${count(rung.n_bytes)}`),
    el("td", {}, bits(sum)),
    el("td", {}, percent(rung.accuracy)),
    el("td", {}, nats(rung.loss)));
}

export class Heat {
  // Prefix that is looked at; null for the plan's.
  #picked = null;

  constructor(redraw) {
    this.redraw = redraw;
    this.draw = this.draw.bind(this);
  }

  get key() {
    return this.#picked;
  }

  #pick(rung) {
    this.#picked = rung;
    this.redraw();
  }

  draw({ plan, contents, failure }, width) {
    const empty = why({ plan, contents, failure });
    if (empty) return { empty };
    const { projections, rungs } = contents.ladders[plan.ladder];
    if (!projections.length) return { empty: "This ladder's ranks could not be read, or it is too large to show." };
    const rung = Math.min(this.#picked ?? plan.n_rungs, rungs.length);
    const { ranks } = rungs[rung - 1];
    const mean = ranks.reduce((a, b) => a + b, 0) / ranks.length;
    const isPlan = rung === plan.n_rungs;
    return {
      words: `Ranks after rung ${rung} of ${rungs.length}${isPlan ? ", as planned" : ""}: mean ${mean.toFixed(2)}, `
        + `from ${Math.min(...ranks)} to ${Math.max(...ranks)}.`,
      nodes: [this.#picker(rung, rungs.length, plan.n_rungs), heatTable(projections, ranks, width)],
    };
  }

  // The same input stays, so that it keeps the focus while it is moved.
  #picker(rung, n, planned) {
    if (!this.range) {
      this.range = el("input", { type: "range", min: 1, id: "prefix", oninput: () => this.#pick(Number(this.range.value)) });
      this.back = el("button", { type: "button", onclick: () => this.#pick(null) }, "As planned");
      this.picker = el("div", { class: "row" }, el("label", { for: "prefix" }, "Look at rung"), this.range, this.back);
    }
    this.range.max = n;
    this.range.value = rung;
    this.range.setAttribute("aria-valuetext", `${rung} of ${n}${rung === planned ? ", as planned" : ""}`);
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
