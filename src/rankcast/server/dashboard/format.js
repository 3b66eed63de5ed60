// Numbers, times and outcomes, in words.

const PREFIXES = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

function scaled(value, unit) {
  for (const [size, prefix] of PREFIXES) {
    if (Math.abs(value) >= 0.9995 * size) return `${three(value / size)} ${prefix}${unit}`;
  }
  return `${three(value)} ${unit}`;
}

// Three significant digits, no exponent.
export function three(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const digits = Math.max(0, Math.min(3, 2 - Math.floor(Math.log10(size))));
  return Number(value.toFixed(digits)).toLocaleString("en", { maximumFractionDigits: digits });
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

export const bits = (value) => (known(value) ? scaled(value, "bit") : "–");
export const bytes = (value) => (known(value) ? scaled(value, "B") : "–");
export const rate = (value) => (known(value) ? scaled(value, "bit/s") : "–");
export const hertz = (value) => (known(value) ? scaled(value, "Hz") : "–");
export const count = (value) => (known(value) ? value.toLocaleString("en") : "–");
export const percent = (share) => (known(share) ? `${(100 * share).toFixed(1)} %` : "–");
export const nats = (value) => (known(value) ? value.toFixed(3) : "–");
export const decibel = (value) => (known(value) ? `${value.toFixed(1)} dB` : "–");

export function seconds(value) {
  if (!known(value)) return "–";
  if (value >= 7200) return `${three(value / 3600)} h`;
  if (value >= 120) return `${three(value / 60)} min`;
  return value >= 1 || value === 0 ? `${three(value)} s` : `${three(1e3 * value)} ms`;
}

export function ago(atS, nowS) {
  if (!known(atS)) return "never";
  const past = Math.max(0, Math.round(nowS - atS));
  if (past < 2) return "now";
  if (past < 90) return `${past} s ago`;
  if (past < 5400) return `${Math.round(past / 60)} min ago`;
  if (past < 129600) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} days ago`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", {
  day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

export const clock = (atS) => CLOCK.format(new Date(1000 * atS));

export function moment(atS, nowS) {
  return nowS - atS < 43200 ? clock(atS) : DAY.format(new Date(1000 * atS));
}

export function link(plan) {
  if (!plan || !plan.link) return "–";
  if (known(plan.link.throughput_bps)) return `≈ ${rate(plan.link.throughput_bps)}`;
  return `${decibel(plan.link.snr_db)} · ${hertz(plan.link.bandwidth_hz)}`;
}

// Rate of the link of a plan [bit/s].
export function capacity(plan) {
  return plan.deadline_s > 0 ? plan.budget_bits / plan.deadline_s : NaN;
}

const OUTCOMES = {
  activated: ["✓", "activated", "good"],
  fetched: ["↓", "fetched", "plain"],
  "rolled-back": ["↶", "rolled back", "bad"],
  unhealthy: ["✚", "unhealthy", "bad"],
  refused: ["⊘", "refused", "bad"],
  failed: ["✕", "failed", "warn"],
  plan: ["…", "planned", "plain"],
  version: ["◆", "new version", "plain"],
};

// A glyph, a word and a tone; colour alone would not do.
export function outcome(kind) {
  const [glyph, word, tone] = OUTCOMES[kind] || ["?", String(kind), "plain"];
  return { glyph, word, tone };
}
