"use strict";
// One table of all claims, gathered from the sections below, to be sorted and filtered.
(() => {
  const box = document.getElementById("every");
  const body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("thead th")];
  const filters = ["words", "side", "verdict"].map((id) => document.getElementById(id));
  const count = document.getElementById("count");

  // Each claim: its row, its words for the filter, and the texts by which it is sorted.
  const claims = [...document.querySelectorAll("section[data-source]")].flatMap((section) => (
    [...section.querySelectorAll(".claims tbody tr")].map((from) => {
      const row = document.createElement("tr");
      const where = document.createElement("td");
      const link = document.createElement("a");
      link.href = `#${section.querySelector("h2").id}`;
      link.textContent = section.dataset.source;
      link.title = section.querySelector("h2").textContent;
      where.append(link);
      row.append(where, ...[...from.cells].slice(0, 5).map((cell) => cell.cloneNode(true)));
      const keys = [...row.cells].map((cell) => cell.textContent.trim());
      const words = `${link.title} ${keys.join(" ")}`.toLowerCase();
      return { row, keys, words, side: section.dataset.side, verdict: keys[4] };
    })));

  let order = { column: -1, down: false };

  const number = (text) => {
    const match = text.replace(/−/g, "-").replace(/,/g, "").match(/[+-]?\d+(\.\d+)?/);
    return match ? Number(match[0]) : null;
  };

  function compare(a, b) {
    const [x, y] = [a.keys[order.column], b.keys[order.column]];
    if ([2, 3, 5].includes(order.column)) {
      const [m, n] = [number(x), number(y)];
      if (m === null || n === null) return (m === null) - (n === null);
      return order.down ? n - m : m - n;
    }
    return (order.down ? -1 : 1) * x.localeCompare(y, "en", { numeric: true });
  }

  function draw() {
    const [words, side, verdict] = filters.map((field) => field.value.trim());
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = claims.filter((claim) => (!side || claim.side === side)
      && (!verdict || claim.verdict === verdict)
      && wanted.every((word) => claim.words.includes(word)));
    if (order.column >= 0) shown.sort(compare);
    body.replaceChildren(...shown.map((claim) => claim.row));
    count.textContent = `${shown.length} of ${claims.length} claims`;
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      order = { column, down: order.column === column && !order.down };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      draw();
    });
  });
  filters.forEach((field) => field.addEventListener("input", draw));
  box.hidden = false;
  draw();
})();
