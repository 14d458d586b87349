/* What the page saves: two drafts, a chat and a text, and the settings. */

import { read, write } from "./storage.js";

const NAME = "tokenflume.conversation.1"; // the number is the format's version

/**
 * @typedef {{role: "user" | "assistant", content: string, figures?: object}} Turn
 * @typedef {{given: string, written: string, figures?: object}} Text
 * @typedef {{mode: "" | "chat" | "continue", model: string, chat: Turn[], text: Text | null,
 *   drafts: {chat: string, continue: string}, settings: Record<string, string>}} Conversation
 */

/** The saved conversation, with defaults for missing fields. @returns {Conversation} */
export function load() {
  const drafts = { chat: "", continue: "Once upon a time" };
  const fresh = { mode: "", model: "", chat: [], text: null, drafts, settings: {} };
  const saved = { ...fresh, ...JSON.parse(read(NAME) ?? "{}") };
  for (const last of [saved.chat.at(-1), saved.text]) {
    if (last) last.figures ??= { reason: "interrupted" }; // by the reload
  }
  return saved;
}

/** Save it. Returns false if the browser has no space. @param {Conversation} conversation */
export function save(conversation) {
  return write(NAME, JSON.stringify(conversation));
}
