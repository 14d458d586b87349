/* The texts of the page. */

const ENDINGS = {
  stop: "Finished: the model ended the text.",
  length: "Finished: the limit of tokens is reached.",
  cancelled: "The server cancelled the stream.",
};

export const MODES = {
  chat: {
    label: "Message",
    send: "Send",
    key: "↵",
    shortcut: "Enter",
    welcome: "Write a message to begin. The conversation stays in this tab.",
  },
  continue: {
    label: "Beginning of a text",
    send: "Continue",
    key: "Ctrl ↵",
    shortcut: "Control+Enter",
    welcome: "Write the beginning of a text, and the model goes on.",
  },
};

/** Before the first message. @param {"chat" | "continue"} mode @param {boolean} [isForChats] */
export function welcome(mode, isForChats = true) {
  const isUnsuited = mode === "chat" && !isForChats;
  return isUnsuited
    ? "This model has no chat template of its own; Continue may suit it better."
    : MODES[mode].welcome;
}

/** The end of a stream that did not fail. @param {string} reason @param {number} tokens */
export function ending(reason, tokens) {
  if (reason === "stopped") return tokens ? "Stopped." : "Stopped before the first token.";
  return ENDINGS[reason] ?? `Finished${reason && `: ${reason}`}.`;
}

/** Why the page waits for the server. @param {import("./failure.js").Failure} failure */
export function waiting({ status, detail, message }) {
  if (status === 0) return "The server cannot be reached. Trying again…";
  return status === 503 ? `Waiting for the server to load: ${detail}.` : `${message} Trying again…`;
}
