/* The page at /: it sends a prompt to POST /stream and shows the continuation as it arrives.

     Continue ─▶ generate ─▶ openStream ─▶ ndjson ─▶ follow ─▶ the text grows
*/

const FIELDS = ["num_predict", "temp", "top_k", "top_p", "repeat_penalty", "seed"];
const POLL_MS = 2000;
const JSON_NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
const CUT = "The stream was cut before its end: the text may be incomplete.";
const REFUSALS = { 400: "Not accepted", 429: "The server is busy", 503: "The server is not ready" };
const ENDINGS = {
  stop: "Finished: the model ended the text.",
  length: "Finished: the limit of tokens is reached.",
  cancelled: "The server cancelled the stream.",
};

/** @param {string} id @returns {HTMLElement & HTMLInputElement} */
const $ = (id) => document.getElementById(id);

/** @param {number} count @param {string} noun */
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** @param {{architecture: string, engine: string}} model @param {number} workers */
const describe = ({ architecture, engine }, workers) =>
  [architecture, engine, plural(workers, "worker")].join(" · ");

const state = {
  isReady: false,
  /** @type {AbortController | null} Of the stream that runs. */
  running: null,
  /** The last prompts that were typed and sent: "Continue from here" sends what nobody typed. */
  typed: "",
  sent: "",
};

/** What goes wrong, as a sentence for the reader. */
class Failure extends Error {
  /** @param {string} sentence @param {{field?: string, serverIsAway?: boolean}} [more] */
  constructor(sentence, more = {}) {
    super(sentence);
    Object.assign(this, more);
  }
}

/* What is sent */

/**
 * A field's JSON: a number exactly as typed, for a seed may have more digits than a Number;
 * anything else as a string, which the server refuses and says what it takes.
 * @param {string} typed
 */
function literal(typed) {
  const value = typed.trim().replace(",", ".").replace(/^\./, "0.");
  return JSON_NUMBER.test(value) ? value : JSON.stringify(typed);
}

/** The body of POST /stream, without the fields that are empty. @param {string} prompt */
function requestBody(prompt) {
  const given = FIELDS.filter((name) => $(name).value.trim());
  const members = given.map((name) => `,"${name}":${literal($(name).value)}`);
  return `{"prompt":${JSON.stringify(prompt)}${members.join("")}}`;
}

/* What is received */

/** Start a stream. Throws Failure. @param {string} prompt @param {AbortSignal} signal */
async function openStream(prompt, signal) {
  const headers = { accept: "application/x-ndjson", "content-type": "application/json" };
  const request = { method: "POST", headers, body: requestBody(prompt), signal };
  const response = await fetch("/stream", request).catch((error) => {
    if (signal.aborted) throw error;
    throw new Failure("The request did not reach the server.", { serverIsAway: true });
  });
  if (!response.ok) throw await refusal(response);
  return response.body.getReader();
}

/** An HTTP error as a Failure. @param {Response} response */
async function refusal(response) {
  const answer = await response.json().catch(() => null);
  const message = answer?.error?.message ?? `HTTP status ${response.status}`;
  const subject = REFUSALS[response.status] ?? "The server refused";
  const after = Number(response.headers.get("retry-after"));
  const again = after > 0 ? ` Try again in ${plural(after, "second")}.` : "";
  return new Failure(`${subject}: ${message}.${again}`, {
    field: ["prompt", ...FIELDS].find((name) => message.startsWith(`${name} `)),
    serverIsAway: response.status === 503,
  });
}

/**
 * The objects of an NDJSON stream, those of each chunk together. Characters and lines may be
 * split anywhere; a last line without its end is dropped. Throws Failure.
 * @param {ReadableStreamDefaultReader<Uint8Array>} reader @param {AbortSignal} signal
 */
async function* ndjson(reader, signal) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Failure(CUT);
    });
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    yield lines.filter((line) => line.trim()).map((line) => JSON.parse(line));
  }
}

/** Show a stream's tokens until its last object, and return that. Throws Failure. */
async function follow(reader, signal, meter) {
  for await (const objects of ndjson(reader, signal)) {
    const tokens = objects.filter((object) => "token" in object);
    if (tokens.length) {
      if (!meter.count) say("Writing…");
      measure(meter, tokens.length);
      write(tokens.map((object) => object.token).join(""));
    }
    const last = objects.find((object) => object.done || object.error);
    if (last?.error) throw new Failure(`The server could not go on: ${last.error.message}.`);
    if (last) return last;
  }
  throw new Failure(CUT);
}

/* One generation */

/** Continue `prompt`, unless a stream is running or the server is not ready. */
async function generate(prompt) {
  if (state.running || !state.isReady) return;
  const controller = new AbortController();
  const meter = { started: performance.now(), first: 0, count: 0 };
  state.running = controller;
  state.sent = prompt;
  updateButtons();
  complain(null);
  say("Reading the prompt…");
  try {
    const reader = await openStream(prompt, controller.signal);
    begin(prompt);
    end(meter, await follow(reader, controller.signal, meter));
  } catch (error) {
    controller.abort(); // whatever went wrong, nothing more of this stream is wanted
    interrupted(error, meter);
  }
  state.running = null;
  updateButtons();
}

/** The stream came to its end. */
function end(meter, { finish_reason: reason, usage, timings }) {
  showRate(usage.completion_tokens - 1, timings.decode_ms);
  $("reason").textContent = reason;
  say(ENDINGS[reason] ?? `Finished: ${reason}.`);
}

/** The stream was stopped by the reader, or it failed. */
function interrupted(error, meter) {
  const isStop = error.name === "AbortError";
  if (meter.count) $("reason").textContent = isStop ? "stopped" : "error";
  say(!isStop ? "" : meter.count ? "Stopped." : "Stopped before the first token.");
  if (isStop) return;
  const isKnown = error instanceof Failure;
  complain(isKnown ? error : new Failure(`The answer cannot be read: ${error.message}.`));
  if (error.serverIsAway) waitUntilReady();
}

/** Count tokens that have arrived. */
function measure(meter, count) {
  const now = performance.now();
  meter.first ||= now;
  meter.count += count;
  const ms = meter.first - meter.started;
  $("first").textContent = ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
  $("count").textContent = String(meter.count);
  showRate(meter.count - 1, now - meter.first);
}

/* What is shown */

/** @param {number} tokens After the first. @param {number} ms What they took. */
function showRate(tokens, ms) {
  if (tokens > 0 && ms > 0) $("rate").textContent = ((tokens * 1000) / ms).toFixed(1);
}

/** Say how things stand; the same sentence is not announced twice. @param {string} sentence */
function say(sentence) {
  if ($("status").textContent !== sentence) $("status").textContent = sentence;
}

/** Show an error and the field it is about; null: none. @param {Failure | null} failure */
function complain(failure) {
  $("error").textContent = failure?.message ?? "";
  for (const name of ["prompt", ...FIELDS]) $(name).removeAttribute("aria-invalid");
  if (!failure?.field) return;
  $(failure.field).setAttribute("aria-invalid", "true");
  $("sampling").open ||= failure.field !== "prompt";
}

/** An accepted prompt takes the place of the text before it. @param {string} prompt */
function begin(prompt) {
  for (const id of ["first", "rate", "count", "reason"]) $(id).textContent = "–";
  $("given").textContent = prompt;
  $("written").replaceChildren(document.createTextNode(""));
  $("output").hidden = false;
  $("output").scrollIntoView({ block: "end" });
}

/** Add to the text; a reader at the end of the page stays there. @param {string} text */
function write(text) {
  const page = document.documentElement;
  const isAtEnd = page.scrollHeight - page.clientHeight - page.scrollTop < 64;
  $("written").firstChild.appendData(text);
  if (isAtEnd) page.scrollTop = page.scrollHeight;
}

/** Say which buttons act now. All stay focusable, so that the focus is never lost. */
function updateButtons() {
  const isRunning = state.running !== null;
  $("output").setAttribute("aria-busy", String(isRunning));
  const disabled = { stop: !isRunning, clear: isRunning };
  disabled.continue = disabled.further = isRunning || !state.isReady;
  for (const [id, is] of Object.entries(disabled)) $(id).setAttribute("aria-disabled", String(is));
}

/* The server */

/** Ask GET /ready until the server is; meanwhile say why it is not. */
async function waitUntilReady() {
  state.isReady = false;
  updateButtons();
  while (!(await askReady())) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  state.isReady = true;
  updateButtons();
  say("Ready.");
}

/** True once the server is ready; then its model is shown. @returns {Promise<boolean>} */
async function askReady() {
  try {
    const response = await fetch("/ready", { cache: "no-store" });
    const { model, workers, error } = await response.json();
    if (!response.ok) say(`Waiting for the server to load: ${error.message}.`);
    else $("model").textContent = describe(model, workers);
    return response.ok;
  } catch {
    say("The server cannot be reached. Trying again…");
    return false;
  }
}

/* What the reader does */

function onContinue(event) {
  event.preventDefault();
  if (!state.running) state.typed = $("prompt").value;
  generate($("prompt").value);
}

/** The whole text becomes the prompt. */
function onFurther() {
  if (state.running || !state.isReady) return;
  $("prompt").value = $("text").textContent;
  generate($("text").textContent);
}

/** Put the text on the clipboard, which a page without HTTPS may only do by a selection. */
async function onCopy() {
  try {
    await navigator.clipboard.writeText($("text").textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren($("text"));
    say(document.execCommand("copy") ? "Copied." : "Selected: press Ctrl+C to copy.");
  }
}

/** Drop what was written; the prompt is again as it was typed. */
function onClear() {
  if (state.running) return;
  if ($("prompt").value === state.sent) $("prompt").value = state.typed;
  $("output").hidden = true;
  complain(null);
  say("Cleared.");
  $("prompt").focus();
}

function onKey(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onContinue(event);
  if (event.key === "Escape") state.running?.abort();
}

$("form").addEventListener("submit", onContinue);
$("stop").addEventListener("click", () => state.running?.abort());
$("further").addEventListener("click", onFurther);
$("copy").addEventListener("click", onCopy);
$("clear").addEventListener("click", onClear);
document.addEventListener("keydown", onKey);
waitUntilReady();
