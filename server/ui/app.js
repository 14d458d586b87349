/* The page at /: it continues a chat, or a text, and shows what is written as it arrives.

     send ─▶ answer ─┐
                     ├─▶ run ─▶ api ─▶ streams ─▶ Painter ─▶ views
     send ─▶ extend ─┘
*/

import { askReady, listModels, streamChat, streamText, useKey } from "./api.js";
import { load, save } from "./conversation.js";
import { Failure } from "./failure.js";
import { Meter } from "./figures.js";
import { Painter } from "./painter.js";
import { chatBody, fieldOf, SAMPLING, textBody } from "./request_body.js";
import { ChatView, following, TextView, toEnd } from "./views.js";

const POLL_MS = 2000;
const SETTINGS = ["system", ...SAMPLING];
const ENDINGS = {
  stop: "Finished: the model ended the text.",
  length: "Finished: the limit of tokens is reached.",
  cancelled: "The server cancelled the stream.",
};
const MODES = {
  chat: {
    label: "Message",
    send: "Send",
    key: "↵",
    welcome: "Write a message to begin. The conversation stays in this tab.",
    warning: "This model has no chat template of its own; Continue may suit it better.",
  },
  continue: {
    label: "Beginning of a text",
    send: "Continue",
    key: "Ctrl ↵",
    welcome: "Write the beginning of a text, and the model goes on.",
  },
};

/** @param {string} id @returns {HTMLElement & HTMLInputElement} */
const $ = (id) => document.getElementById(id);

const conversation = load();
const chatView = new ChatView($("chat"));
const textView = new TextView($("tale"));
const state = {
  isReady: false,
  isConnecting: false,
  /** Then streams break, and what they had written is kept already. */
  isLeaving: false,
  /** @type {AbortController | null} Of the stream that runs. */
  running: null,
  /** @type {{id: string, chat: boolean}[]} */
  models: [],
};

/* One generation */

const canRun = () => !state.running && state.isReady;
const modelInUse = () => state.models.find(({ id }) => id === conversation.model);

/** Answer the last of these turns. What is not accepted leaves the chat as it was. */
async function answer(turns) {
  const before = conversation.chat;
  const turn = { role: "assistant", content: "" };
  conversation.chat = [...turns, turn];
  showConversation();
  toEnd();
  const body = chatBody(conversation.model, turns, conversation.settings);
  const add = (text) => (turn.content += text);
  const isAccepted = await run((signal) => streamChat(body, signal), chatView.last, turn, add);
  if (!isAccepted) conversation.chat = before;
  showConversation();
  return isAccepted;
}

/** Continue this text. What is not accepted leaves the text as it was. */
async function extend(given) {
  const before = conversation.text;
  const text = { given, written: "" };
  conversation.text = text;
  textView.show(text);
  showConversation();
  toEnd();
  const body = textBody(conversation.model, given, conversation.settings);
  const add = (more) => (text.written += more);
  const isAccepted = await run((signal) => streamText(body, signal), textView, text, add);
  if (!isAccepted) textView.show((conversation.text = before));
  showConversation();
}

/**
 * Run one stream to its end and show it; it is kept in `record` by `add`. False if it ended before
 * its first token, for another reason than that the model had nothing to say.
 */
async function run(open, view, record, add) {
  const controller = new AbortController();
  const meter = new Meter();
  const painter = new Painter((text) => following(() => view.add(text, meter.figures())));
  state.running = controller;
  updateButtons();
  complain(null);
  say("Reading the prompt…");
  let end;
  let trouble = null;
  try {
    for await (const part of open(controller.signal)) {
      end = part.end;
      if (!part.tokens) continue;
      say("Writing…");
      meter.add(part.tokens);
      add(part.text);
      painter.add(part.text);
    }
  } catch (error) {
    controller.abort(); // whatever went wrong, nothing more of this stream is wanted
    trouble = error;
    end = { reason: error.name === "AbortError" ? "stopped" : "error" };
  }
  painter.end();
  record.figures = meter.figures(end);
  following(() => view.end(record.figures));
  state.running = null;
  updateButtons();
  conclude(trouble, end.reason, meter.tokens);
  return !trouble || meter.tokens > 0;
}

/** Say how a stream has ended. @param {Error | null} trouble */
function conclude(trouble, reason, tokens) {
  if (!trouble) say(ENDINGS[reason] ?? `Finished: ${reason}.`);
  else if (reason === "stopped") say(tokens ? "Stopped." : "Stopped before the first token.");
  else {
    say("");
    report(trouble);
  }
}

/** Show what went wrong, and do what it asks for. @param {Error} error */
function report(error) {
  const isKnown = error instanceof Failure;
  complain(isKnown ? error : new Failure(`The answer cannot be read: ${error.message}.`));
  if (error.status === 401) askForKey();
  if (error.status === 0 || error.status === 503) connect();
}

/* What is shown */

/** Say how things stand; the same sentence is not announced twice. @param {string} sentence */
function say(sentence) {
  if ($("status").textContent !== sentence) $("status").textContent = sentence;
}

/** Show an error and the field it is about; null: none. @param {Failure | null} failure */
function complain(failure) {
  following(() => ($("error").textContent = failure?.message ?? ""));
  for (const name of SAMPLING) $(name).removeAttribute("aria-invalid");
  const field = fieldOf(failure?.param);
  if (!field) return;
  $(field).setAttribute("aria-invalid", "true");
  openSettings(true);
}

/** Show the conversation as it is, and keep it. */
function showConversation() {
  const { mode, chat, text } = conversation;
  chatView.show(chat);
  $("chat").hidden = mode !== "chat" || !chat.length;
  $("tale").hidden = mode !== "continue" || !text;
  $("welcome").textContent = welcome();
  $("welcome").hidden = !$("chat").hidden || !$("tale").hidden;
  updateButtons();
  keep();
}

function welcome() {
  const { mode } = conversation;
  const isUnsuited = mode === "chat" && modelInUse()?.chat === false;
  return isUnsuited ? MODES.chat.warning : MODES[mode].welcome;
}

function keep() {
  if (state.isLeaving) return;
  if (!save(conversation)) say("There is no room to keep the conversation over a reload.");
}

/** Say which buttons act now. They stay focusable, so that the focus is never lost. */
function updateButtons() {
  const isRunning = state.running !== null;
  const isIdle = canRun();
  if (!isRunning && document.activeElement === $("stop")) $("prompt").focus();
  $("stop").hidden = !isRunning;
  $("send").ariaDisabled = String(!isIdle);
  $("clear").ariaDisabled = String(isRunning);
  for (const button of document.querySelectorAll("[data-act=retry], [data-act=further]")) {
    button.ariaDisabled = String(!isIdle);
  }
}

/** @param {"chat" | "continue"} mode */
function showMode(mode) {
  const { label, send, key } = MODES[mode];
  conversation.mode = mode;
  document.querySelector(`#mode [value=${mode}]`).checked = true;
  $("prompt-label").textContent = $("prompt").placeholder = label;
  $("prompt").value = conversation.drafts[mode];
  $("send-label").textContent = send;
  $("send-key").textContent = key;
  $("send").setAttribute("aria-keyshortcuts", mode === "chat" ? "Enter" : "Control+Enter");
  $("system-field").hidden = mode !== "chat";
  showConversation();
}

function setDraft(text) {
  conversation.drafts[conversation.mode] = $("prompt").value = text;
}

/** @param {boolean} isOpen */
function openSettings(isOpen) {
  $("settings").hidden = !isOpen;
  $("toggle").ariaExpanded = String(isOpen);
}

/* The server */

/** Wait for the server, and show its models; meanwhile say what is missing. */
async function connect() {
  if (state.isConnecting) return;
  state.isConnecting = true;
  state.isReady = false;
  updateButtons();
  let trouble = await tryToConnect();
  while (trouble && trouble.status !== 401) {
    say(waitingFor(trouble));
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    trouble = await tryToConnect();
  }
  state.isConnecting = false;
  if (trouble) return askForKey();
  state.isReady = true;
  updateButtons();
  say("Ready.");
}

/** What keeps the server from answering, or null. @returns {Promise<Failure | null>} */
async function tryToConnect() {
  try {
    await askReady();
    showModels(await listModels());
    return null;
  } catch (error) {
    return error;
  }
}

function waitingFor({ status, detail, message }) {
  if (status === 0) return "The server cannot be reached. Trying again…";
  return status === 503 ? `Waiting for the server to load: ${detail}.` : `${message} Trying again…`;
}

function showModels(models) {
  state.models = models;
  $("model").hidden = !models.length;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  const isThere = models.some(({ id }) => id === conversation.model);
  if (isThere) $("model").value = conversation.model;
  else chooseModel(models[0]);
}

/** A model brings its mode with it. @param {{id: string, chat: boolean} | undefined} model */
function chooseModel(model) {
  conversation.model = model?.id ?? "";
  showMode(model?.chat ? "chat" : "continue");
}

function askForKey() {
  say("");
  state.isReady = false;
  updateButtons();
  if (!$("key-form").hidden) complain(new Failure("The server does not take this key."));
  $("key-form").hidden = false;
  $("key").focus();
}

/* What the reader does */

async function onSend(event) {
  event.preventDefault();
  const { mode, chat, drafts } = conversation;
  const draft = drafts[mode];
  if (!canRun() || !draft.trim()) return;
  if (mode === "continue") return extend(draft);
  setDraft("");
  const isAccepted = await answer([...chat, { role: "user", content: draft }]);
  if (!isAccepted && !conversation.drafts.chat) giveBack(draft);
}

/** A message that was not accepted can be sent again. */
function giveBack(message) {
  conversation.drafts.chat = message;
  showMode(conversation.mode);
}

const ACTS = {
  "copy-code": (button) => copy(button.closest(".code").querySelector("pre").textContent),
  copy: (button) => copy(chatView.turnOf(button)?.content ?? wholeText()),
  retry: () => canRun() && retry(),
  further: () => canRun() && extend(wholeText()),
  edit: () => {
    setDraft(wholeText());
    $("prompt").focus();
  },
};

const wholeText = () => conversation.text.given + conversation.text.written;

function retry() {
  if (conversation.mode === "continue") extend(conversation.text.given);
  else answer(conversation.chat.slice(0, -1));
}

function onAct({ target }) {
  const button = target.closest("[data-act]");
  if (button) ACTS[button.dataset.act](button);
}

/** Put a text into the clipboard; over plain HTTP, only the old way is open. */
async function copy(text) {
  const onCopy = (event) => {
    event.preventDefault();
    event.clipboardData.setData("text/plain", text);
  };
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    document.addEventListener("copy", onCopy, { once: true });
    say(document.execCommand("copy") ? "Copied." : "The browser does not let this page copy.");
    document.removeEventListener("copy", onCopy);
  }
}

function onClear() {
  if (state.running) return;
  if (conversation.mode === "chat") conversation.chat = [];
  else textView.show((conversation.text = null));
  showConversation();
  complain(null);
  say("Cleared.");
  $("prompt").focus();
}

function onKeySubmit(event) {
  event.preventDefault();
  if (!$("key").value) return;
  useKey($("key").value);
  complain(null);
  connect().then(() => {
    if (!state.isReady) return;
    $("key").value = "";
    $("key-form").hidden = true;
    $("prompt").focus();
  });
}

function onKey(event) {
  if (event.key === "Escape") state.running?.abort();
  const isSend = event.key === "Enter" && !event.isComposing && event.target === $("prompt");
  if (!isSend || event.shiftKey) return;
  const isShort = conversation.mode === "chat" && matchMedia("(pointer: fine)").matches;
  if (isShort || event.ctrlKey || event.metaKey) onSend(event);
}

function onLeave() {
  keep();
  state.isLeaving = true;
}

function onDraft() {
  conversation.drafts[conversation.mode] = $("prompt").value;
}

function onSetting({ target }) {
  conversation.settings[target.id] = target.value;
  keep();
}

for (const name of SETTINGS) $(name).value = conversation.settings[name] ?? "";
textView.show(conversation.text);
showMode(conversation.mode || "chat");

$("composer").addEventListener("submit", onSend);
$("stop").addEventListener("click", () => state.running?.abort());
$("clear").addEventListener("click", onClear);
$("toggle").addEventListener("click", () => openSettings($("settings").hidden));
$("settings").addEventListener("input", onSetting);
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("prompt").addEventListener("input", onDraft);
$("key-form").addEventListener("submit", onKeySubmit);
$("mode").addEventListener("change", ({ target }) => showMode(target.value));
$("model").addEventListener("change", ({ target }) =>
  chooseModel(state.models.find(({ id }) => id === target.value)));
document.addEventListener("click", onAct);
document.addEventListener("keydown", onKey);
window.addEventListener("pagehide", onLeave);
window.addEventListener("pageshow", () => (state.isLeaving = false));
connect();
