// Requests to this server: JSON, and the stream of events with its reconnections.

const TOKEN = "rankcast-token";
const LONGEST_EVENT = 2 ** 20;
const SILENT_MS = 45000;
const LONGEST_WAIT_MS = 30000;

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (value) => sessionStorage.setItem(TOKEN, value),
  forget: () => sessionStorage.removeItem(TOKEN),
};

export class Refusal extends Error {
  constructor(status, message, retryS) {
    super(message);
    this.status = status;
    this.retryS = retryS;
  }
}

async function ask(path, options = {}) {
  const headers = {};
  const held = token.get();
  if (held) headers.Authorization = `Bearer ${held}`;
  const answer = await fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
  if (answer.ok) return answer;
  let message = `The server answered ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* a proxy's error has no words of ours */ }
  throw new Refusal(answer.status, message, Number(answer.headers.get("Retry-After")) || 0);
}

export async function getJson(path) {
  return (await ask(path, { signal: AbortSignal.timeout(15000) })).json();
}

// Cuts a stream of text into events; pieces may end anywhere.
export class Parser {
  #rest = "";

  *take(piece) {
    this.#rest += piece;
    for (let end = this.#rest.indexOf("\n\n"); end >= 0; end = this.#rest.indexOf("\n\n")) {
      const event = parsed(this.#rest.slice(0, end));
      this.#rest = this.#rest.slice(end + 2);
      if (event) yield event;
    }
    if (this.#rest.length > LONGEST_EVENT) throw new Error("An event is too long.");
  }
}

function parsed(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  return fields.data ? { kind: fields.event, data: JSON.parse(fields.data) } : null;
}

async function read(path, onEvent, onPiece) {
  const aborting = new AbortController();
  let silence = setTimeout(() => aborting.abort(), SILENT_MS);
  try {
    const answer = await ask(path, { signal: aborting.signal, cache: "no-store" });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new Parser();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => aborting.abort(), SILENT_MS);
      onPiece();
      for (const event of parser.take(value)) onEvent(event);
    }
  } finally {
    clearTimeout(silence);
    aborting.abort();
  }
}

export async function history(device, n) {
  const events = [];
  const query = `last=${n}&follow=false&device=${encodeURIComponent(device)}`;
  await read(`v1/events?${query}`, (event) => events.push(event), () => {});
  return events;
}

// Follows events until the server asks for another token. `prepare` runs before each connection
// and returns where to begin.
export async function follow({ prepare, onEvent, onState }) {
  for (let failures = 0; ; failures += 1) {
    let message = "The connection ended.";
    let waitS = 0;
    try {
      onState("connecting", "");
      const query = await prepare();
      await read(`v1/events?${query}`, onEvent, () => {
        failures = -1;
        onState("live", "");
      });
    } catch (error) {
      if (error.status === 401) throw error;
      message = error instanceof Refusal ? error.message : "The server does not answer.";
      waitS = error.retryS || 0;
    }
    const backOff = Math.min(LONGEST_WAIT_MS, 1000 * 2 ** Math.max(0, failures));
    const waitMs = Math.max(1000 * waitS, backOff * (0.5 + 0.5 * Math.random()));
    onState("waiting", message, waitMs);
    await new Promise((resume) => setTimeout(resume, waitMs));
  }
}
