// Ties the page together: asks for a token if one is needed, follows the events, draws.

import { Refusal, follow, getJson, history, token } from "./api.js";
import { batched, byId, setText } from "./dom.js";
import { DeviceTable, newest } from "./device_table.js";
import { Heat, drawChunks } from "./chunk_panels.js";
import { ago, link, rate } from "./format.js";
import { drawAccuracy, drawDelivered, drawLink } from "./link_panels.js";
import { News, Tiles, drawAdapters, drawLog } from "./overview.js";
import { Panel } from "./panel.js";
import { lookAtRollouts } from "./rollouts.js";
import { State, MOST_EVENTS } from "./state.js";
import { setUpTheme } from "./theme.js";

const REPLAY = 1000;
const SEEN_EVERY_MS = 60_000;
const DRAW_MS = 200;
const ROLLOUTS_EVERY_MS = 10_000;

const state = new State();
const news = new News();
const tiles = new Tiles();
const redraw = batched(draw, DRAW_MS);
const heat = new Heat(redraw);
const panels = {
  link: new Panel("Link over time", drawLink),
  heat: new Panel("Ranks of the plan", heat.draw, { hasTable: false }),
  chunks: new Panel("Chunks", drawChunks, { hasTable: false }),
  accuracy: new Panel("Expected accuracy", drawAccuracy),
  delivered: new Panel("Delivered against the deadline", drawDelivered, { wide: true }),
};
const table = new DeviceTable(state, { onChoose: choose, onChange: redraw });
const failures = new Map();
let chosen = fromAddress();
let drawnLog = null;

function draw() {
  const nowS = Date.now() / 1000;
  if (!chosen || (state.devices.size && !state.devices.has(chosen))) chosen = latest();
  tiles.update(state, nowS);
  table.update(chosen, nowS);
  const logKey = `${state.log.at(-1)?.sequence}|${chosen}|${byId("log-mine").checked}`;
  if (logKey !== drawnLog) drawLog(state, chosen, nowS);
  drawnLog = logKey;
  drawChosen(nowS);
}

function fromAddress() {
  try {
    return decodeURIComponent(location.hash.match(/^#device=(.+)$/)?.[1] || "") || null;
  } catch {
    return null;
  }
}

function latest() {
  const devices = [...state.devices.values()].filter((d) => d.lastS);
  return devices.reduce((a, b) => (a && a.lastS >= b.lastS ? a : b), null)?.name ?? null;
}

function drawChosen(nowS) {
  const device = chosen && state.devices.get(chosen);
  byId("panels").hidden = !device;
  setText(byId("chosen-title"), device ? device.name : "No device chosen");
  if (!device) {
    setText(byId("chosen-words"), "The link, plan and chunks of a device appear here as soon as it asks for a plan.");
    return;
  }
  const last = newest(device);
  const measured = device.measured ? ` · measured ${rate(device.measured.throughput_bps)}` : "";
  setText(byId("chosen-words"), last
    ? `${last.adapter} version ${last.version} · link ${link(device.plan)}${measured} · last seen ${ago(device.lastS, nowS)}`
    : "This device has a token and has not asked for a plan yet.");
  fill(device);
  const plan = device.plan;
  const contents = plan && contentsOf(plan);
  const context = {
    device, plan, contents, nowS, report: device.report, rounds: state.rounds(device),
    failure: plan && failures.get(plan.adapter),
  };
  const key = `${device.name}|${last?.sequence}|${device.events.length}`;
  const release = `${key}|${contents?.manifest}|${context.failure}`;
  for (const name of ["link", "delivered", "accuracy"]) panels[name].update(context, key);
  panels.heat.update(context, `${release}|${heat.key}`);
  const isWaiting = plan && plan.sequence === last?.sequence;
  panels.chunks.update(context, isWaiting ? `${release}|${Math.floor(nowS / 5)}` : release);
}

// Asks once for what happened to a device before this page was opened.
async function fill(device) {
  if (device.isFilled) return;
  device.isFilled = true;
  try {
    state.backfill(device.name, await history(device.name, MOST_EVENTS));
    redraw();
  } catch {
    setTimeout(() => { device.isFilled = false; }, 5000);
  }
}

function contentsOf(plan) {
  const held = state.contents.get(plan.adapter);
  const isStale = !held || held.version < plan.version;
  if (isStale && !state.asked.has(`${plan.adapter} ${plan.version}`)) fetchContents(plan);
  return held;
}

async function fetchContents({ adapter, version }) {
  const asked = `${adapter} ${version}`;
  state.asked.add(asked);
  try {
    const contents = await getJson(`v1/adapters/${encodeURIComponent(adapter)}`);
    state.contents.set(adapter, contents);
    state.adapters.set(adapter, contents);
    failures.delete(adapter);
    drawAdapters(state);
  } catch (error) {
    failures.set(adapter, error instanceof Refusal ? error.message : "the server does not answer.");
    setTimeout(() => state.asked.delete(asked), 5000);
  }
  redraw();
}

function choose(name) {
  chosen = name;
  window.history.replaceState(null, "", `#device=${encodeURIComponent(name)}`);
  news.tell(`${name} chosen.`);
  redraw();
}

// Before each connection: what there is now, then where the events go on.
async function prepare() {
  state.summarise(await getJson("v1/devices"));
  byId("ask").hidden = true;
  byId("main").hidden = false;
  byId("forget").hidden = !token.get();
  try {
    state.publish((await getJson("v1/adapters")).adapters);
  } catch (error) {
    if (error.status !== 503) throw error;
    state.publish([]);
  }
  drawAdapters(state);
  lookAtRollouts(state);
  redraw();
  return state.sequence ? `after=${state.sequence}` : `last=${REPLAY}`;
}

function onEvent({ kind, data }) {
  const isOld = data.sequence <= state.counted;
  const entry = state.add(kind, data);
  if (entry && !isOld) news.entry(entry);
  redraw();
}

// A look that changes nothing is no event, but moves the time at which a device was last seen.
async function lookWhoWasSeen() {
  if (byId("main").hidden) return;
  try {
    state.see(await getJson("v1/devices"));
  } catch {
    return; // the stream of events says what is wrong
  }
  redraw();
}

let shownState = "";

function onState(name, message, waitMs) {
  const pill = byId("connection");
  const words = {
    live: "● live", connecting: "◌ connecting", token: "○ token needed",
    waiting: `↻ offline, next try in ${Math.ceil((waitMs || 0) / 1000)} s`,
  }[name];
  pill.dataset.state = name;
  pill.title = message;
  setText(pill, words);
  const isNews = name !== "connecting" && name !== shownState;
  if (isNews && shownState) news.tell(name === "live" ? "Connected." : `Not connected. ${message}`);
  if (isNews) shownState = name;
}

async function run() {
  try {
    await follow({ prepare, onEvent, onState });
  } catch (error) {
    onState("token", error.message);
    askForToken(token.get() ? error.message : "");
  }
}

function askForToken(message) {
  token.forget();
  state.clear();
  byId("main").hidden = true;
  byId("forget").hidden = true;
  byId("ask").hidden = false;
  setText(byId("ask-error"), message);
  byId("token").focus();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("token").value.trim();
  byId("token").value = "";
  if (!/^[\x21-\x7e]+$/.test(given)) {
    setText(byId("ask-error"), "A token has letters, digits, dashes and underscores, without spaces.");
    return;
  }
  token.set(given);
  run();
});
byId("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});
byId("log-mine").addEventListener("change", redraw);
for (const panel of Object.values(panels)) byId("panels").append(panel.node);
new ResizeObserver(redraw).observe(byId("panels"));
setInterval(redraw, 1000);
setInterval(lookWhoWasSeen, SEEN_EVERY_MS);
setInterval(() => lookAtRollouts(state), ROLLOUTS_EVERY_MS);
setUpTheme(byId("theme"));
run();
