// All devices together: numbers in tiles, published adapters, the log, and news read aloud.

import { byId, el, setText, tableOf } from "./dom.js";
import { bits, bytes, count, moment, outcome, percent } from "./format.js";

const ACTIVE_S = 300;
const MOST_SHOWN = 100;
const NEWS_EVERY_MS = 4000;
const NEWSWORTHY = ["rolled-back", "refused", "failed", "unhealthy", "version"];

export class Tiles {
  #cells = new Map();

  update(state, nowS) {
    const devices = [...state.devices.values()];
    const active = devices.filter((d) => d.lastS && d.lastS > nowS - ACTIVE_S).length;
    const recent = state.recently(nowS);
    const timed = recent.filter((x) => x.met !== null);
    const met = timed.filter((x) => x.met).length;
    const accuracies = devices.map((d) => d.plan?.accuracy).filter(Number.isFinite).sort((a, b) => a - b);
    const back = devices.reduce((sum, d) => sum + d.nBack, 0);
    this.#set("Devices active", count(active), `of ${count(devices.length)}, in 5 min`);
    this.#set("Plans", count(recent.filter((x) => x.kind === "plan").length), "in 5 min");
    this.#set("Delivered", bits(recent.reduce((sum, x) => sum + x.bits, 0)), "in 5 min");
    this.#set("In time", timed.length ? percent(met / timed.length) : "–", `${met} of ${timed.length} transfers, in 5 min`);
    const middle = accuracies[Math.floor((accuracies.length - 1) / 2)];
    this.#set("Expected accuracy", percent(middle), "median of the devices");
    this.#set("Roll-backs", count(back), back ? "see the log" : "none lately", back ? "bad" : "good");
  }

  #set(name, value, words, tone = "") {
    let cells = this.#cells.get(name);
    if (!cells) {
      cells = [el("dd", { class: "value" }), el("dd", { class: "muted" })];
      this.#cells.set(name, cells);
      byId("tiles").append(el("div", {}, el("dt", {}, name), ...cells));
    }
    setText(cells[0], value);
    setText(cells[1], words);
    cells[0].className = `value ${tone}`;
  }
}

export function drawAdapters(state) {
  const adapters = [...state.adapters.values()];
  if (!adapters.length) {
    byId("adapters").replaceChildren(el("p", { class: "empty" }, "Nothing is published yet. Make keys, once:",
      el("code", { class: "block" }, "rankcast keys init --keys ~/keys --store store"),
      "Then sign and publish a file:",
      el("code", { class: "block" }, "rankcast publish demo.rcast --name demo --store store --keys ~/keys")));
    return;
  }
  const rows = adapters.map((a) => [a.name, a.version, a.base.name || a.base.fingerprint.slice(0, 12),
    a.n_rungs.join(" + "), bytes(a.n_bytes)]);
  const columns = ["Name", "Version", "Base model", "Chunks", "Size"];
  byId("adapters").replaceChildren(el("div", {
    class: "scroll", tabindex: 0, role: "group", "aria-label": "Table of adapters",
  }, tableOf("Published adapters", columns, rows)));
}

export function drawLog(state, chosen, nowS) {
  const isMine = byId("log-mine").checked;
  const entries = state.log.filter((e) => !isMine || e.device === chosen);
  const shown = entries.slice(-MOST_SHOWN).reverse();
  byId("log").replaceChildren(...shown.map((entry) => {
    const { glyph, word, tone } = outcome(entry.kind);
    const what = entry.kind === "version" ? " is asked for" : `, ${entry.n_rungs} chunks`;
    return el("li", {},
      el("time", { datetime: new Date(1000 * entry.at_s).toISOString() }, moment(entry.at_s, nowS)),
      el("span", { class: `what ${tone}` }, `${glyph} ${word}`),
      el("span", {}, el("b", {}, entry.device), ` ${entry.adapter} v${entry.version}${what}`,
        entry.message ? el("q", {}, entry.message) : null));
  }));
  byId("log-none").hidden = shown.length > 0;
}

// Reads the newest important entry aloud, and how many came since; not more often than can be heard.
export class News {
  #waiting = [];
  #timer = null;

  tell(words) {
    this.#waiting.push(words);
    this.#timer ??= setTimeout(() => this.#speak(), 200);
  }

  entry(entry) {
    if (!NEWSWORTHY.includes(entry.kind)) return;
    this.tell(`${entry.device}: ${entry.adapter} version ${entry.version} ${outcome(entry.kind).word}.`);
  }

  #speak() {
    const more = this.#waiting.length - 1;
    if (more >= 0) {
      byId("news").textContent = this.#waiting.at(-1) + (more ? ` ${more} more since.` : "");
      this.#waiting = [];
      this.#timer = setTimeout(() => this.#speak(), NEWS_EVERY_MS);
    } else {
      this.#timer = null;
    }
  }
}
