/* What the page remembers: two drafts, a chat and a text, and how they are to be continued. */

import { read, write } from "./storage.js";

const NAME = "tokenflume.conversation.1"; // another number: another shape

/**
 * @typedef {{role: "user" | "assistant", content: string, figures?: object}} Turn
 * @typedef {{given: string, written: string, figures?: object}} Text
 * @typedef {{mode: "" | "chat" | "continue", model: string, chat: Turn[], text: Text | null,
 *   drafts: {chat: string, continue: string}, settings: Record<string, string>}} Conversation
 */

/** What was saved, over a fresh one. @returns {Conversation} */
export function load() {
  const drafts = { chat: "", continue: "Once upon a time" };
  const fresh = { mode: "", model: "", chat: [], text: null, drafts, settings: {} };
  const saved = { ...fresh, ...JSON.parse(read(NAME) ?? "{}") };
  for (const last of [saved.chat.at(-1), saved.text]) {
    if (last) last.figures ??= { reason: "interrupted" }; // by the reload
  }
  return saved;
}

/** False if there is no room for it. @param {Conversation} conversation */
export function save(conversation) {
  return write(NAME, JSON.stringify(conversation));
}
