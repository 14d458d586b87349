/* The page at /: it continues a chat, or a text, and shows what is written as it arrives.

     onSend ─▶ answer ─┐                                  ┌─▶ conversation, kept
                       ├─▶ run ─▶ api ─▶ streams ─▶ follow ─▶ views, shown
     onSend ─▶ extend ─┘
*/

import { streamChat, streamText, useKey } from "./api.js";
import { copy } from "./clipboard.js";
import { Connection } from "./connection.js";
import { load, save } from "./conversation.js";
import { Failure } from "./failure.js";
import { follow } from "./generation.js";
import { chatBody, fieldOf, SAMPLING, textBody } from "./request_body.js";
import { ending, MODES, waiting, welcome } from "./sentences.js";
import { ChatView, following, TextView, toEnd } from "./views.js";

/** @param {string} id @returns {HTMLElement & HTMLInputElement} */
const $ = (id) => document.getElementById(id);

const conversation = load();
const chatView = new ChatView($("chat"));
const textView = new TextView($("tale"));
const connection = new Connection({
  waiting: (trouble) => say(waiting(trouble)),
  needsKey: askForKey,
  ready: onReady,
});
const state = {
  /** @type {AbortController | null} Aborts the running stream. */
  running: null,
  /** @type {{id: string, chat: boolean}[]} */
  models: [],
  /** The page is being left: streams break, and their text has been saved already. */
  isLeaving: false,
};

/* One generation */

const modelInUse = () => state.models.find(({ id }) => id === conversation.model);
const canRun = () => !state.running && connection.isReady;

/** Answer the last of these turns. If the server refuses, the chat does not change. */
async function answer(turns) {
  const before = conversation.chat;
  const turn = { role: "assistant", content: "" };
  conversation.chat = [...turns, turn];
  showConversation();
  toEnd();
  const body = chatBody(conversation.model, turns, conversation.settings);
  const isAccepted = await run(streamChat, body, chatView.last, turn, "content");
  if (!isAccepted) conversation.chat = before;
  showConversation();
  return isAccepted;
}

/** Continue this text. If the server refuses, the text does not change. */
async function extend(given) {
  const before = conversation.text;
  const text = { given, written: "" };
  conversation.text = text;
  textView.show(text);
  showConversation();
  toEnd();
  const body = textBody(conversation.model, given, conversation.settings);
  const isAccepted = await run(streamText, body, textView, text, "written");
  if (!isAccepted) textView.show((conversation.text = before));
  showConversation();
}

/**
 * Run one stream to its end: its text goes to the view and into `record[field]`. Returns false if
 * the stream ended before its first token.
 */
async function run(open, body, view, record, field) {
  const controller = new AbortController();
  state.running = controller;
  updateButtons();
  complain(null);
  say("Reading the prompt…");
  const { figures, trouble } = await follow(open(body, controller.signal), {
    onFirst: () => say("Writing…"),
    keep: (text) => (record[field] += text),
    show: (text, soFar) => following(() => view.add(text, soFar)),
  });
  controller.abort(); // after an error too, no more of this stream is needed
  record.figures = figures;
  following(() => view.end(figures));
  state.running = null;
  updateButtons();
  if (figures.reason === "error") report(trouble);
  else say(ending(figures.reason, figures.tokens));
  return !trouble || figures.tokens > 0;
}

/** Show the error and react to it. @param {Error} error */
function report(error) {
  const isKnown = error instanceof Failure;
  say("");
  complain(isKnown ? error : new Failure(`The answer cannot be read: ${error.message}.`));
  if (error.status === 401) askForKey();
  if (error.status === 0 || error.status === 503) reconnect();
}

/* What is shown */

/** Show the status; the same sentence is not announced twice. @param {string} sentence */
function say(sentence) {
  if ($("status").textContent !== sentence) $("status").textContent = sentence;
}

/** Show an error and its field; null: hide them. @param {Failure | null} failure */
function complain(failure) {
  following(() => ($("error").textContent = failure?.message ?? ""));
  for (const name of SAMPLING) $(name).removeAttribute("aria-invalid");
  const field = fieldOf(failure?.param);
  if (!field) return;
  $(field).setAttribute("aria-invalid", "true");
  openSettings(true);
}

/** Show the conversation and save it. */
function showConversation() {
  const { mode, chat, text } = conversation;
  chatView.show(chat);
  $("chat").hidden = mode !== "chat" || !chat.length;
  $("tale").hidden = mode !== "continue" || !text;
  $("welcome").textContent = welcome(mode, modelInUse()?.chat);
  $("welcome").hidden = !$("chat").hidden || !$("tale").hidden;
  updateButtons();
  keep();
}

function keep() {
  if (state.isLeaving) return;
  if (!save(conversation)) say("The browser has no space to keep the conversation over a reload.");
}

/** Enable and disable buttons. All stay focusable, so that the focus is not lost. */
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
  const { label, send, key, shortcut } = MODES[mode];
  conversation.mode = mode;
  document.querySelector(`#mode [value=${mode}]`).checked = true;
  $("prompt-label").textContent = $("prompt").placeholder = label;
  $("prompt").value = conversation.drafts[mode];
  $("send-label").textContent = send;
  $("send-key").textContent = key;
  $("send").setAttribute("aria-keyshortcuts", shortcut);
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

function reconnect() {
  const opening = connection.open();
  updateButtons();
  return opening;
}

function onReady(models) {
  showModels(models);
  updateButtons();
  say("Ready.");
}

function showModels(models) {
  state.models = models;
  $("model").hidden = !models.length;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  if (modelInUse()) $("model").value = conversation.model;
  else chooseModel(models[0]);
  showConversation();
}

/** Switch to the model's mode. @param {{id: string, chat: boolean} | undefined} model */
function chooseModel(model) {
  conversation.model = model?.id ?? "";
  showMode(model?.chat ? "chat" : "continue");
}

function askForKey() {
  say("");
  connection.close();
  updateButtons();
  if (!$("key-form").hidden) complain(new Failure("The server does not accept this key."));
  $("key-form").hidden = false;
  $("key").focus();
}

/* The user's actions */

async function onSend(event) {
  event.preventDefault();
  const { mode, chat, drafts } = conversation;
  const draft = drafts[mode];
  if (!canRun() || !draft.trim()) return;
  if (mode === "continue") return extend(draft);
  setDraft("");
  const isAccepted = await answer([...chat, { role: "user", content: draft }]);
  if (!isAccepted) giveBack(draft);
}

/** Put a refused message back into the composer, before what was typed meanwhile. */
function giveBack(message) {
  conversation.drafts.chat = [message, conversation.drafts.chat].filter(Boolean).join("\n\n");
  showMode(conversation.mode);
}

const ACTS = {
  "copy-code": (button) => offerCopy(button.closest(".code").querySelector("pre").textContent),
  copy: (button) => offerCopy(chatView.turnOf(button)?.content ?? wholeText()),
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

async function offerCopy(text) {
  say((await copy(text)) ? "Copied." : "The browser does not let this page copy.");
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

async function onKeySubmit(event) {
  event.preventDefault();
  const isPossible = useKey($("key").value.trim());
  complain(isPossible ? null : new Failure("A key is one word of ASCII characters."));
  if (isPossible) await reconnect();
  if (!connection.isReady) return;
  $("key").value = "";
  $("key-form").hidden = true;
  $("prompt").focus();
}

function onKey(event) {
  if (event.isComposing) return; // the key belongs to an input method
  if (event.key === "Escape") state.running?.abort();
  const isSend = event.key === "Enter" && event.target === $("prompt");
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

for (const name of ["system", ...SAMPLING]) $(name).value = conversation.settings[name] ?? "";
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
reconnect();
