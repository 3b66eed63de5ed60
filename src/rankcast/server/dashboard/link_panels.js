// Panels over time: the link, deliveries, the expected accuracy.

import { Frame, drawMarker, drawSeries, roof } from "./charts.js";
import { bits, capacity, clock, decibel, link, nats, outcome, percent, rate, seconds, three } from "./format.js";

const MOST_BARS = 24;
const ASIDE = 66;
const plain = (value) => (value === 0 ? "0" : three(value));

function span(points) {
  const times = points.map((p) => p.t);
  const from = Math.min(...times);
  const to = Math.max(...times);
  return to - from < 10 ? { from: to - 10, to } : { from, to };
}

function unitOf(high) {
  for (const [size, name] of [[1e9, "Gbit"], [1e6, "Mbit"], [1e3, "kbit"]]) if (high >= size) return [size, name];
  return [1, "bit"];
}

export function drawLink({ device }, width) {
  const plans = device.events.filter((e) => e.kind === "plan").map(({ data }) => ({
    t: data.at_s, value: capacity(data), data, title: `${clock(data.at_s)}: ${link(data)}, ${rate(capacity(data))}`,
  }));
  const measured = device.events.filter((e) => e.kind === "report" && e.data.throughput_bps).map(({ data }) => ({
    t: data.at_s, value: data.throughput_bps, data, title: `${clock(data.at_s)}: measured ${rate(data.throughput_bps)}`,
  }));
  const all = [...plans, ...measured];
  if (!all.length) return { empty: "This device has reported nothing about its link yet." };
  const x = span(all);
  const [size, name] = unitOf(Math.max(...all.map((p) => p.value)));
  const newest = plans.at(-1);
  const said = newest ? `Plan for ${link(newest.data)}: carries ${rate(newest.value)}. ` : "";
  const words = said + (measured.length ? `The device last measured ${rate(measured.at(-1).value)}.`
    : "The device has measured no transfer yet.");
  const rates = new Frame({
    width, height: 170, x, y: { low: 0, high: roof(all.map((p) => p.value / size)), words: plain },
    label: `Rate of the link in ${name} per second over time. ${words} ${all.length} points.`,
  });
  rates.text(4, 11, `${name}/s`, { class: "unit" });
  drawSeries(rates, plans.map((p) => ({ ...p, value: p.value / size })), { cssClass: "series-a", marker: "circle" });
  drawSeries(rates, measured.map((p) => ({ ...p, value: p.value / size })), { cssClass: "series-b", marker: "square" });
  const radio = plans.filter((p) => Number.isFinite(p.data.link.snr_db));
  return {
    words,
    nodes: radio.length ? [rates.node, snrStrip(radio, x, width)] : [rates.node],
    legend: [["circle", "series-a", "the plan's link carries"], ["square", "series-b", "the device measured"]],
    table: {
      columns: ["Time", "Link of the plan", "Carries", "Measured"],
      rows: all.sort((a, b) => b.t - a.t).map((p) => (p.data.link
        ? [clock(p.t), link(p.data), rate(p.value), "–"] : [clock(p.t), "–", "–", rate(p.value)])),
    },
  };
}

function snrStrip(radio, x, width) {
  const points = radio.map((p) => ({ t: p.t, value: p.data.link.snr_db, title: `${clock(p.t)}: ${decibel(p.data.link.snr_db)}` }));
  const values = points.map((p) => p.value);
  const y = { low: Math.min(...values) - 1, high: Math.max(...values) + 1 };
  const label = `SNR over time, now ${decibel(values.at(-1))}, between ${decibel(Math.min(...values))} and ${decibel(Math.max(...values))}.`;
  const frame = new Frame({ width, height: 110, x, y, label });
  frame.text(4, 11, "SNR, dB", { class: "unit" });
  drawSeries(frame, points, { cssClass: "series-a", marker: "circle", step: true });
  return frame.node;
}

// Bits that came and were not activated.
const isLost = (round) => round.report && !["activated", "fetched"].includes(round.report.event);

// A transfer that took longer than its plan allowed.
const isLate = (round) => round.report && round.report.elapsed_s > round.plan.deadline_s;

export function drawDelivered({ rounds }, width) {
  const sending = rounds.filter((r) => r.plan.bits > 0);
  const shown = sending.slice(-Math.min(MOST_BARS, Math.max(6, Math.floor(width / 26))));
  if (!shown.length) return { empty: "No plan had anything to send yet." };
  const done = shown.filter((r) => r.report);
  const late = done.filter(isLate).length;
  const words = `${done.length} of the last ${shown.length} plans with something to send were reported on; `
    + `${late ? `${late} came late` : "none came late"}.`;
  const wanted = shown.map((r) => Math.max(r.plan.bits, r.report?.received_bits || 0));
  const budgets = shown.map((r) => r.plan.budget_bits).filter((b) => b <= 2.5 * Math.max(...wanted));
  const [size, name] = unitOf(Math.max(...wanted, ...budgets, 1));
  return {
    words,
    nodes: [bitBars(shown, roof([...wanted, ...budgets]) / size, size, name, width, words), timeMarks(shown, width)],
    legend: [["bar", "bar-got", "bits received"], ["bar", "bar-lost", "✕ received, not activated"],
      ["bar", "bar-planned", "bits planned"],
      ["tick", "budget", "budget: what the deadline allows"], ["diamond", "time", "time taken"]],
    table: {
      columns: ["Time", "Budget", "Planned", "Received", "Deadline", "Taken", "Outcome"],
      rows: shown.map((r) => [clock(r.plan.at_s), bits(r.plan.budget_bits), bits(r.plan.bits),
        bits(r.report?.received_bits), seconds(r.plan.deadline_s), seconds(r.report?.elapsed_s),
        r.report ? outcome(r.report.event).word : "no report"]).reverse(),
    },
  };
}

function bitBars(shown, high, size, name, width, words) {
  const frame = new Frame({
    width, height: 170, margin: ASIDE, y: { low: 0, high, words: plain },
    label: `Bits received of the bits that each deadline allows, in ${name}. ${words}`,
  });
  frame.text(4, 11, name, { class: "unit" });
  shown.forEach((r, i) => {
    const { middle, wide } = frame.place(i, shown.length);
    const title = `${clock(r.plan.at_s)}: ${bits(r.report?.received_bits)} received of ${bits(r.plan.bits)} planned, budget ${bits(r.plan.budget_bits)}`;
    const bar = (value, cssClass) => {
      const y = frame.yOf(value / size);
      frame.add("rect", { x: middle - wide / 2, width: wide, y, height: Math.max(0, frame.bottom - y), class: cssClass }, title);
    };
    bar(r.plan.bits, "bar-planned");
    if (r.report) bar(r.report.received_bits, isLost(r) ? "bar-lost" : "bar-got");
    if (isLost(r)) frame.text(middle, frame.bottom - 4, "✕", { "text-anchor": "middle", class: "on-lost" });
    const y = frame.yOf(r.plan.budget_bits / size);
    if (r.plan.budget_bits / size > high) frame.text(middle, 18, "↑", { "text-anchor": "middle", class: "beyond" });
    else frame.add("line", { x1: middle - wide / 2 - 3, x2: middle + wide / 2 + 3, y1: y, y2: y, class: "budget" }, title);
  });
  return frame.node;
}

function timeMarks(shown, width) {
  const shares = shown.map((r) => (r.report && r.report.elapsed_s > 0 ? (100 * r.report.elapsed_s) / r.plan.deadline_s : NaN));
  const known = shares.filter(Number.isFinite);
  const frame = new Frame({
    width, height: 110, margin: ASIDE, y: { low: 0, high: Math.min(200, roof(known, 112)) },
    label: `Time taken as a share of each deadline in per cent; ${known.filter((s) => s > 100).length} of ${known.length} beyond it.`,
  });
  frame.text(4, 11, "% of time", { class: "unit" });
  frame.rule(100, "deadline", "deadline");
  shares.forEach((share, i) => {
    if (!Number.isFinite(share)) return;
    const { middle } = frame.place(i, shown.length);
    const y = frame.yOf(share);
    const title = `${seconds(shown[i].report.elapsed_s)} of ${seconds(shown[i].plan.deadline_s)}`;
    drawMarker(frame, { x: middle, y, title }, "diamond", share > 100 ? "time late" : "time");
    if (share > 100) frame.text(middle + 7, y + 4, "late", { class: "bad" });
  });
  return frame.node;
}

export function drawAccuracy({ rounds }, width) {
  const rated = rounds.filter((r) => Number.isFinite(r.plan.accuracy ?? NaN));
  const usesLoss = !rated.length;
  const worth = (plan) => (usesLoss ? plan.loss : plan.accuracy);
  const shown = rounds.filter((r) => Number.isFinite(worth(r.plan) ?? NaN));
  if (!shown.length) {
    return { empty: "The release has no measured accuracy; rankcast pack --measure measures it." };
  }
  const words = usesLoss ? nats : percent;
  const size = usesLoss ? 1 : 100;
  const points = shown.map((r) => ({
    t: r.plan.at_s, value: size * worth(r.plan), round: r,
    title: `${clock(r.plan.at_s)}: ${words(worth(r.plan))} with ${r.plan.n_rungs} chunks of version ${r.plan.version}`,
  }));
  const values = points.map((p) => p.value);
  const room = Math.max(0.02 * size, 0.15 * (Math.max(...values) - Math.min(...values)));
  const now = shown.at(-1).plan;
  const summary = `${words(worth(now))} expected of the last plan: ${now.n_rungs} chunks of version ${now.version}.`;
  const high = Math.max(...values) + room;
  const frame = new Frame({
    width, height: 160, x: span(points),
    y: { low: Math.max(0, Math.min(...values) - room), high: usesLoss ? high : Math.min(100, high) },
    label: `${usesLoss ? "Loss" : "Accuracy"} expected of each plan over time. ${summary}`,
  });
  frame.text(4, 11, usesLoss ? "nats" : "%", { class: "unit" });
  drawSeries(frame, points, { cssClass: "series-a", marker: "circle", step: true });
  for (const p of points) {
    if (p.round.report?.event === "activated") {
      drawMarker(frame, { ...p, x: frame.xOf(p.t), y: frame.yOf(p.value) }, "diamond", "active");
    }
  }
  return {
    words: summary,
    nodes: [frame.node],
    legend: [["circle", "series-a", "expected of the plan"], ["diamond", "active", "and activated"]],
    table: {
      columns: ["Time", "Version", "Chunks", usesLoss ? "Loss" : "Accuracy", "Outcome"],
      rows: shown.map((r) => [clock(r.plan.at_s), r.plan.version, r.plan.n_rungs, words(worth(r.plan)),
        r.report ? outcome(r.report.event).word : "no report"]).reverse(),
    },
  };
}
