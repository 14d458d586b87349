/* The server's endpoints that this page uses. All throw Failure, or AbortError after an abort. */

import { Failure, refusal } from "./failure.js";
import { read, write } from "./storage.js";
import { chatParts, textParts } from "./streams.js";

const KEY = "tokenflume.key";
let key = read(KEY);

/** Send this key with every request. False if no header can hold it. @param {string} given */
export function useKey(given) {
  if (!/^[!-~]+$/.test(given)) return false;
  key = given;
  write(KEY, given);
  return true;
}

/** Whether the server can answer now; if not, the Failure's detail says why. */
export async function askReady() {
  await request("/ready");
}

/** @returns {Promise<{id: string, owned_by: string, chat: boolean}[]>} */
export async function listModels() {
  const { data } = await (await request("/v1/models")).json();
  return data;
}

/** Stream the continuation of a text. @param {string} body JSON @param {AbortSignal} signal */
export async function* streamText(body, signal) {
  yield* textParts(await post("/stream", "application/x-ndjson", body, signal), signal);
}

/** Stream the answer in a conversation. @param {string} body JSON @param {AbortSignal} signal */
export async function* streamChat(body, signal) {
  yield* chatParts(await post("/v1/chat/completions", "text/event-stream", body, signal), signal);
}

function post(path, accept, body, signal) {
  const headers = { accept, "content-type": "application/json" };
  return request(path, { method: "POST", headers, body, signal });
}

/** @param {string} path @param {RequestInit} [options] */
async function request(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { cache: "no-store", ...options, headers }).catch((error) => {
    if (options.signal?.aborted) throw error;
    throw new Failure("The request did not reach the server.", { status: 0 });
  });
  if (!response.ok) throw await refusal(response);
  return response;
}
