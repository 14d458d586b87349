/* What arrives, piece by piece: text and the number of its tokens, and last how it ended.

     response ─▶ lines ─▶ ndjson       ─▶ parts
                       └▶ serverEvents ─▶ parts

   Characters, lines and events may be split anywhere. What came together is handed on together.
*/

import { Failure } from "./failure.js";

const CUT = "The stream was cut before its end: the text may be incomplete.";

/**
 * @typedef {{reason: string, promptTokens?: number, tokens?: number, decodeMs?: number}} End
 * @typedef {{text: string, tokens: number, end?: End}} Part
 */

/** Whole lines; a last one without its end is dropped. Throws Failure. */
async function* lines(response, signal) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Failure(CUT);
    });
    if (done) return;
    const found = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = found.pop();
    yield found;
  }
}

/** The `data` of server-sent events. */
async function* serverEvents(lineBatches) {
  let data = [];
  for await (const batch of lineBatches) {
    const events = [];
    for (const line of batch.map((one) => one.replace(/\r$/, ""))) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      if (line !== "" || !data.length) continue;
      events.push(data.join("\n"));
      data = [];
    }
    yield events;
  }
}

/** An answer of POST /stream. Throws Failure. @returns {AsyncGenerator<Part>} */
export async function* textParts(response, signal) {
  for await (const batch of lines(response, signal)) {
    const objects = batch.filter((line) => line.trim()).map((line) => JSON.parse(line));
    const tokens = objects.filter((object) => "token" in object);
    yield { text: tokens.map(({ token }) => token).join(""), tokens: tokens.length };
    const last = objects.find((object) => object.done || object.error);
    if (last?.error) throw broken(last.error);
    if (last) {
      yield { text: "", tokens: 0, end: endOf(last.finish_reason, last.usage, last.timings) };
      return;
    }
  }
  throw new Failure(CUT);
}

/** An answer of POST /v1/chat/completions. Throws Failure. @returns {AsyncGenerator<Part>} */
export async function* chatParts(response, signal) {
  let reason = "";
  let usage = null;
  for await (const events of serverEvents(lines(response, signal))) {
    const isDone = events.includes("[DONE]");
    const chunks = events.filter((data) => data !== "[DONE]").map((data) => JSON.parse(data));
    const texts = chunks.map(({ choices }) => choices?.[0]?.delta?.content).filter(Boolean);
    yield { text: texts.join(""), tokens: texts.length };
    for (const chunk of chunks) {
      if (chunk.error) throw broken(chunk.error);
      reason = chunk.choices?.[0]?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    if (isDone) {
      yield { text: "", tokens: 0, end: endOf(reason, usage) };
      return;
    }
  }
  throw new Failure(CUT);
}

const broken = ({ message }) => new Failure(`The server could not go on: ${message}.`);

/** @returns {End} */
const endOf = (reason, usage, timings) => ({
  reason,
  promptTokens: usage?.prompt_tokens,
  tokens: usage?.completion_tokens,
  decodeMs: timings?.decode_ms,
});
