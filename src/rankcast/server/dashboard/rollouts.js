// Rollouts: stages with their share and devices, failures by group, and why one was halted.

import { getJson } from "./api.js";
import { byId, el, tableOf } from "./dom.js";
import { count, moment, percent } from "./format.js";

const TONES = { halted: "bad", aborted: "bad", paused: "warn", waiting: "warn", running: "accent", done: "good" };
const MOST_FAILED = 5;
let drawn = "";

// Asks what there is, for those who may see it; the stream of events says when nobody answers.
export async function lookAtRollouts(state) {
  if (byId("main").hidden || document.hidden || !state.seesAll) return;
  let rollouts = [];
  try {
    ({ rollouts } = await getJson("v1/rollouts"));
  } catch {
    return;
  }
  const key = JSON.stringify(rollouts);
  if (key !== drawn) drawRollouts(rollouts, Date.now() / 1000);
  drawn = key;
}

export function drawRollouts(rollouts, nowS) {
  byId("rollouts-card").hidden = !rollouts.length;
  byId("rollouts").replaceChildren(...rollouts.map((rollout) => described(rollout, nowS)));
}

function described(rollout, nowS) {
  const title = `${rollout.number}. ${rollout.adapter}: version ${rollout.before} to ${rollout.version}, ${rollout.target}`;
  const rows = rollout.stages.map((stage, k) => [
    `${k + 1}${k + 1 === rollout.stage ? " (now)" : ""}`, percent(stage.share), count(stage.n_devices),
    count(stage.states.activated || 0), count(stage.n_failed),
  ]);
  const groups = Object.entries(rollout.failures_by_group).map(([name, n]) => `${name || "no group"}: ${n}`);
  const failed = rollout.failed.slice(0, MOST_FAILED)
    .map((one) => el("li", {}, el("b", {}, one.device), ` ${one.state} `, one.message ? el("q", {}, one.message) : null));
  const reason = rollout.reason ? ` ${rollout.reason}` : "";
  return el("article", {},
    el("h3", {}, title),
    el("p", {}, el("span", { class: TONES[rollout.state] || "" }, rollout.state), `${reason} `,
      el("time", { class: "muted", datetime: new Date(1000 * rollout.changed_s).toISOString() },
        moment(rollout.changed_s, nowS))),
    el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": `Stages of rollout ${rollout.number}` },
      tableOf(`Stages of rollout ${rollout.number}`, ["Stage", "Share", "Devices", "Have it", "Failed"], rows)),
    groups.length ? el("p", { class: "muted" }, `Failed by group: ${groups.join(", ")}.`) : null,
    failed.length ? el("ul", {}, ...failed) : null);
}
