// The table of devices: sorted, filtered, and chosen from by keyboard.

import { byId, el, setAttribute, setText } from "./dom.js";
import { token } from "./api.js";
import { ago, capacity, link, outcome, rate } from "./format.js";

const MOST_ROWS = 200;

const COLUMNS = [
  { title: "Device", of: (d) => d.name },
  { title: "Outcome", of: (d) => (d.report ? d.report.event : "") },
  { title: "Adapter", of: (d) => newest(d)?.adapter || "" },
  { title: "Chunks", of: (d) => newest(d)?.n_rungs ?? -1 },
  { title: "Link", of: (d) => (d.plan ? capacity(d.plan) : -1) },
  { title: "Measured", of: (d) => d.measured?.throughput_bps ?? -1 },
  { title: "Roll-backs", of: (d) => d.nBack },
  { title: "Last seen", of: (d) => -(d.lastS || 0) },
];

// The plan or the report, whichever is later.
export function newest(device) {
  const { plan, report } = device;
  if (!plan || !report) return plan || report;
  return plan.sequence > report.sequence ? plan : report;
}

export class DeviceTable {
  #sort = { column: 0, direction: 1 };
  #rows = new Map();
  #focused = null;

  constructor(state, { onChoose, onChange }) {
    this.state = state;
    this.onChoose = onChoose;
    this.onChange = onChange;
    this.filter = byId("filter");
    this.filter.addEventListener("input", onChange);
    this.body = byId("device-table").tBodies[0];
    this.body.addEventListener("keydown", (event) => this.#move(event));
    this.body.addEventListener("click", (event) => this.#clicked(event));
    this.heads = COLUMNS.map((column, i) => el("th", { scope: "col" },
      el("button", { type: "button", onclick: () => this.#sortBy(i) }, column.title, el("span", { "aria-hidden": "true" }))));
    byId("device-table").tHead.append(el("tr", {}, ...this.heads));
  }

  update(chosen, nowS) {
    const matches = this.#matches();
    const shown = matches.slice(0, MOST_ROWS);
    this.#order(shown);
    const isThere = shown.some((d) => d.name === this.#focused);
    const entry = isThere ? this.#focused : (shown.find((d) => d.name === chosen) || shown[0])?.name;
    for (const device of shown) this.#fill(device, chosen, entry, nowS);
    this.heads.forEach((head, i) => {
      const isSorted = i === this.#sort.column;
      const words = this.#sort.direction > 0 ? "ascending" : "descending";
      setAttribute(head, "aria-sort", isSorted ? words : null);
      setText(head.querySelector("span"), isSorted ? (this.#sort.direction > 0 ? " ▲" : " ▼") : "");
    });
    const more = byId("devices-more");
    more.hidden = matches.length <= MOST_ROWS;
    setText(more, `${matches.length - MOST_ROWS} more devices: filter to find one.`);
    this.#explainEmpty(matches.length);
  }

  #matches() {
    const wanted = this.filter.value.trim().toLowerCase();
    const { column, direction } = this.#sort;
    const { of } = COLUMNS[column];
    return [...this.state.devices.values()]
      .filter((d) => !wanted || text(d).includes(wanted))
      .map((d) => [of(d), d])
      .sort(([a, x], [b, y]) => direction * compare(a, b) || compare(x.name, y.name))
      .map(([, d]) => d);
  }

  #explainEmpty(n) {
    const none = byId("devices-none");
    none.hidden = n > 0;
    byId("device-table").hidden = n === 0;
    if (n > 0) return;
    if (this.state.devices.size) {
      none.replaceChildren("No device matches the filter.");
      return;
    }
    const name = this.state.adapters.keys().next().value || "NAME";
    none.replaceChildren(...howToBegin(name, Boolean(token.get())));
  }

  // Rows move only if their order has changed, and the focus stays where it was.
  #order(shown) {
    const rows = shown.map((d) => this.#row(d.name));
    const isSame = rows.length === this.body.rows.length && rows.every((row, i) => this.body.rows[i] === row);
    if (isSame) return;
    const active = document.activeElement;
    const hadFocus = this.body.contains(active);
    this.body.replaceChildren(...rows);
    if (hadFocus) active.focus({ preventScroll: true });
    for (const name of this.#rows.keys()) if (!this.state.devices.has(name)) this.#rows.delete(name);
  }

  #row(name) {
    let row = this.#rows.get(name);
    if (!row) {
      const button = el("button", { type: "button", class: "pick" }, name);
      row = el("tr", {}, el("th", { scope: "row" }, button), ...COLUMNS.slice(1).map(() => el("td")));
      row.device = name;
      button.addEventListener("focus", () => { this.#focused = name; });
      this.#rows.set(name, row);
    }
    return row;
  }

  #fill(device, chosen, entry, nowS) {
    const row = this.#rows.get(device.name);
    const button = row.cells[0].firstChild;
    const isChosen = device.name === chosen;
    setAttribute(button, "aria-pressed", isChosen);
    setAttribute(button, "tabindex", device.name === entry ? 0 : -1);
    setAttribute(row, "class", isChosen ? "chosen" : null);
    const last = newest(device);
    const n = last && this.state.adapters.get(last.adapter)?.n_rungs[last.ladder];
    const { glyph, word, tone } = outcome(device.report ? device.report.event : "plan");
    const words = [
      last ? `${glyph} ${word}` : "–",
      last ? `${last.adapter} v${last.version}` : "–",
      last ? `${last.n_rungs}${n ? ` of ${n}` : ""}` : "–",
      link(device.plan),
      rate(device.measured?.throughput_bps),
      String(device.nBack),
      device.isRevoked ? "token revoked" : ago(device.lastS, nowS),
    ];
    words.forEach((word_, i) => setText(row.cells[i + 1], word_));
    setAttribute(row.cells[1], "class", last ? tone : null);
    setAttribute(row.cells[6], "class", device.nBack ? "bad" : null);
  }

  #sortBy(i) {
    const isSame = i === this.#sort.column;
    this.#sort = { column: i, direction: isSame ? -this.#sort.direction : 1 };
    this.onChange();
  }

  #clicked(event) {
    const row = event.target.closest("tr");
    if (row) this.onChoose(row.device);
  }

  #move(event) {
    const rows = [...this.body.rows];
    const at = rows.indexOf(event.target.closest("tr"));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to === undefined || !rows[to]) return;
    event.preventDefault();
    rows[to].cells[0].firstChild.focus();
    this.onChange();
  }
}

// What makes the first device appear: its token, if this server asks for one, and the publisher's root.
function howToBegin(name, needsToken) {
  const server = new URL(".", location.href).href.replace(/\/$/, "");
  const sync = [`rankcast edge sync --server ${server} --adapter ${name}`, `--folder ${name} --base-model MODEL`,
    `--root root.json${needsToken ? " --token-file token" : ""}`].join(" \\\n  ");
  const letIn = needsToken
    ? ["Let one in on this server:", el("code", { class: "block" }, "rankcast devices add pi-1 > token"),
      "Copy token and the publisher's store/metadata/root.json to the device, and run there:"]
    : ["Copy the publisher's store/metadata/root.json to a device, and run there:"];
  return ["No device has asked yet. ", ...letIn, el("code", { class: "block" }, sync)];
}

function text(device) {
  const last = newest(device);
  return `${device.name} ${last?.adapter || ""} ${device.report ? outcome(device.report.event).word : ""}`.toLowerCase();
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
