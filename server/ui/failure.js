/* Errors, as sentences for the user. */

const SUBJECTS = {
  400: "Not accepted",
  401: "The server requires a key",
  429: "The server is busy",
  503: "The server is not ready",
};

/** @param {number} count @param {string} noun */
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

export class Failure extends Error {
  /**
   * @param {string} sentence
   * @param {{status?: number, detail?: string, param?: string}} [more] `status` is 0 if there
   *   was no response; `detail` is the server's message.
   */
  constructor(sentence, more = {}) {
    super(sentence);
    Object.assign(this, more);
  }
}

/** An HTTP error as a Failure. @param {Response} response */
export async function refusal(response) {
  const answer = await response.json().catch(() => null);
  const { message = `HTTP status ${response.status}`, param } = answer?.error ?? {};
  const subject = SUBJECTS[response.status] ?? "The server refused";
  const after = Number(response.headers.get("retry-after"));
  const again = after > 0 ? ` Try again in ${plural(after, "second")}.` : "";
  return new Failure(`${subject}: ${message}.${again}`, {
    status: response.status,
    detail: message,
    param: param ?? message.split(" ", 1)[0],
  });
}
