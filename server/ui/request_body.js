/* The bodies of requests: JSON, with the sampling settings of the page. */

/** The fields of the page, by their names in POST /v1/chat/completions. */
export const SAMPLING = ["max_tokens", "temperature", "top_k", "top_p", "repeat_penalty", "seed"];

const IN_STREAM = { max_tokens: "num_predict" };
const OTHER_NAMES = { num_predict: "max_tokens", temp: "temperature", max_completion_tokens: "max_tokens" };
const JSON_NUMBER = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;

/** The field of the page that the server calls `name`, or undefined. @param {string} name */
export function fieldOf(name) {
  const own = OTHER_NAMES[name] ?? name;
  return SAMPLING.includes(own) ? own : undefined;
}

/**
 * A field's JSON: a number exactly as typed, because a seed may have more digits than a Number;
 * anything else as a string, which the server refuses with the accepted range.
 * @param {string} typed
 */
function literal(typed) {
  const value = typed.trim().replace(",", ".").replace(/^\./, "0.");
  return JSON_NUMBER.test(value) ? value : JSON.stringify(typed);
}

/** The fields that are not empty, as members of an object. @param {Record<string, string>} typed */
function members(typed, names = {}) {
  const given = SAMPLING.filter((name) => typed[name]?.trim());
  return given.map((name) => `,"${names[name] ?? name}":${literal(typed[name])}`).join("");
}

/** The body of POST /stream. */
export function textBody(model, prompt, settings) {
  return object({ model: model || undefined, prompt }, members(settings, IN_STREAM));
}

/** The body of POST /v1/chat/completions. @param {{role: string, content: string}[]} turns */
export function chatBody(model, turns, settings) {
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  const messages = [...system, ...turns].map(({ role, content }) => ({ role, content }));
  const fixed = { stream: true, stream_options: { include_usage: true } };
  return object({ model: model || undefined, messages, ...fixed }, members(settings));
}

/** An object as JSON, with more members behind its own. */
const object = (own, more) => `${JSON.stringify(own).slice(0, -1)}${more}}`;
