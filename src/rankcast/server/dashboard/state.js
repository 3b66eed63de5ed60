// The data of the page. Everything is bounded: events of each device, the log, the devices.

export const MOST_EVENTS = 240;
export const MOST_LOG = 300;
export const MOST_DEVICES = 5000;
const MOST_RECENT = 5000;
const RECENT_S = 300;

export class State {
  constructor() {
    this.clear();
  }

  clear() {
    this.devices = new Map();
    this.adapters = new Map();
    this.contents = new Map();
    this.asked = new Set();
    this.versions = new Map();
    this.log = [];
    this.recent = [];
    this.sequence = 0;
    this.counted = 0;
    this.caller = "";
    this.seesAll = true;
  }

  // The answer of /v1/devices. A sequence smaller than ours is of another database.
  summarise(answer) {
    if (answer.sequence < this.sequence) this.clear();
    this.caller = answer.caller;
    this.seesAll = answer.sees_all;
    this.counted = answer.sequence;
    for (const row of answer.devices) {
      const device = this.#device(row.name);
      device.isRevoked = row.is_revoked;
      device.nBack = row.n_rolled_back;
      for (const kind of ["plan", "report"]) if (row[kind]) insert(device, kind, row[kind]);
    }
    this.see(answer);
  }

  // When devices were last seen: a look that changes nothing is no event.
  see(answer) {
    for (const { name, last_s: lastS } of answer.devices) {
      const device = this.devices.get(name);
      if (device && lastS) device.lastS = Math.max(device.lastS || 0, lastS);
    }
  }

  publish(adapters) {
    this.adapters = new Map(adapters.map((adapter) => [adapter.name, adapter]));
  }

  // An event of the stream; returns its entry in the log if it deserves one.
  add(kind, data) {
    if (data.sequence <= this.sequence) return null;
    this.sequence = data.sequence;
    const device = this.#device(data.device);
    insert(device, kind, data);
    if (data.sequence > this.counted && data.event === "rolled-back") device.nBack += 1;
    this.#remember(kind, data, device);
    const entry = kind === "plan" ? this.#newVersion(data) : { kind: data.event, ...data };
    if (!entry) return null;
    this.log.push(entry);
    if (this.log.length > MOST_LOG) this.log.shift();
    return entry;
  }

  // Events of one device that were asked for later.
  backfill(name, events) {
    const device = this.#device(name);
    for (const { kind, data } of events) insert(device, kind, data);
    device.isFilled = true;
  }

  // Plans of a device, each with the report that followed.
  rounds(device) {
    const rounds = [];
    for (const event of device.events) {
      const last = rounds.at(-1);
      if (event.kind === "plan") rounds.push({ plan: event.data, report: null });
      else if (event.data.event !== "fetched" || !last?.report) {
        if (last && last.plan.adapter === event.data.adapter) last.report = event.data;
      }
    }
    return rounds;
  }

  recently(nowS) {
    const from = this.recent.findIndex((x) => x.atS > nowS - RECENT_S);
    this.recent = from < 0 ? [] : this.recent.slice(from);
    return this.recent;
  }

  #device(name) {
    let device = this.devices.get(name);
    if (!device) {
      device = { name, isRevoked: false, nBack: 0, lastS: null, plan: null, report: null, measured: null, events: [] };
      this.devices.set(name, device);
      if (this.devices.size > MOST_DEVICES) this.#drop(name);
    }
    return device;
  }

  #drop(except) {
    let oldest = null;
    for (const device of this.devices.values()) {
      if (device.name !== except && (!oldest || (device.lastS || 0) < (oldest.lastS || 0))) oldest = device;
    }
    this.devices.delete(oldest.name);
  }

  #remember(kind, data, device) {
    const isTransfer = kind === "report" && data.received_bits > 0;
    const before = isTransfer && device.events.findLast((e) => e.kind === "plan" && e.data.sequence < data.sequence);
    const met = before ? data.elapsed_s <= before.data.deadline_s : null;
    this.recent.push({ atS: data.at_s, kind, met, bits: data.received_bits || 0 });
    if (this.recent.length > 2 * MOST_RECENT) this.recent.splice(0, MOST_RECENT);
  }

  #newVersion(plan) {
    const before = this.versions.get(plan.adapter);
    if (before !== undefined && plan.version <= before) return null;
    this.versions.set(plan.adapter, plan.version);
    return before === undefined ? null : { ...plan, kind: "version", message: "" };
  }
}

// Keeps a device's events in order, each once.
function insert(device, kind, data) {
  const events = device.events;
  let place = events.length;
  while (place > 0 && events[place - 1].data.sequence > data.sequence) place -= 1;
  if (place > 0 && events[place - 1].data.sequence === data.sequence) return;
  events.splice(place, 0, { kind, data });
  if (events.length > MOST_EVENTS) events.shift();
  if (!device[kind] || device[kind].sequence < data.sequence) device[kind] = data;
  const isMeasured = kind === "report" && data.throughput_bps > 0;
  if (isMeasured && !(device.measured?.sequence > data.sequence)) device.measured = data;
  device.lastS = Math.max(device.lastS || 0, data.at_s);
}
