// A part of the page about the chosen device: a title, a picture, and the same numbers as a table.

import { el, setChildren, tableOf } from "./dom.js";
import { legend } from "./charts.js";

let made = 0;

export class Panel {
  #key = null;

  // draw(context, width) returns {nodes, words, legend, table: {columns, rows}}, or {empty}.
  constructor(title, draw, { wide = false, hasTable = true } = {}) {
    made += 1;
    this.draw = draw;
    this.title = title;
    this.legend = el("p", { class: "legend" });
    this.body = el("div", { class: "body" });
    this.words = el("p", { class: "muted" });
    this.rows = el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `${title}: numbers` });
    this.details = el("details", { ontoggle: () => this.#fill() }, el("summary", {}, "Numbers"), this.rows);
    const id = `panel-${made}`;
    this.node = el("section", { class: wide ? "card wide" : "card", "aria-labelledby": id },
      el("h3", { id }, title), this.words, this.body, this.legend, hasTable ? this.details : null);
  }

  // Draws if what it shows, or its width, has changed.
  update(context, key) {
    const width = Math.floor(this.node.clientWidth - 32);
    const wanted = `${key}|${width}`;
    if (wanted === this.#key || width <= 0) return;
    this.#key = wanted;
    const drawn = this.draw(context, width);
    this.words.textContent = drawn.empty || drawn.words || "";
    this.words.className = drawn.empty ? "empty" : "muted";
    setChildren(this.body, drawn.nodes || []);
    this.legend.replaceChildren(...legend(drawn.legend || []).map(([picture, words]) => (
      el("span", {}, picture, words))));
    this.legend.hidden = !drawn.legend;
    this.table = drawn.table || null;
    this.details.hidden = !drawn.table;
    this.#fill();
  }

  #fill() {
    const { table } = this;
    if (!table || !this.details.open) this.rows.replaceChildren();
    else this.rows.replaceChildren(tableOf(this.title, table.columns, table.rows));
  }
}
