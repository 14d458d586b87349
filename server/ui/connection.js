/* Asks whether the server is ready, again and again until it is or requires a key. */

import { askReady, listModels } from "./api.js";

const POLL_MS = 2000;

export class Connection {
  isReady = false;
  #isTrying = false;

  /**
   * @param {{waiting: (trouble: Error) => void, needsKey: () => void,
   *   ready: (models: {id: string, chat: boolean}[]) => void}} told Callbacks; `waiting` is called
   *   after each failed attempt.
   */
  constructor(told) {
    this.told = told;
  }

  /** Ask until there is an answer. */
  async open() {
    if (this.#isTrying) return;
    this.#isTrying = true;
    this.isReady = false;
    let outcome = await ask();
    while (outcome.trouble && outcome.trouble.status !== 401) {
      this.told.waiting(outcome.trouble);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      outcome = await ask();
    }
    this.#isTrying = false;
    if (outcome.trouble) return this.told.needsKey();
    this.isReady = true;
    this.told.ready(outcome.models);
  }

  /** Send no requests until it is opened again. */
  close() {
    this.isReady = false;
  }
}

/** @returns {Promise<{models?: object[], trouble?: Error}>} */
async function ask() {
  try {
    await askReady();
    return { models: await listModels() };
  } catch (trouble) {
    return { trouble };
  }
}
