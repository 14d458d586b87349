/* Markdown as DOM nodes, whole or while it grows. A text never becomes HTML: only the elements that
   are made here can appear.

     text ─▶ blocks ─▶ inline ─▶ nodes
*/

import { blocks } from "./blocks.js";
import { inline } from "./inline.js";

/** An element with a class and children. @param {string} name @param {(Node | string)[]} children */
export function element(name, className = "", children = []) {
  const made = document.createElement(name);
  if (className) made.className = className;
  for (const child of children) made.append(child); // there may be too many for one call
  return made;
}

/** The nodes of a complete text. @param {string} text */
export function markdown(text) {
  return blocks(linesOf(text)).map(build);
}

/**
 * The nodes of a text that grows. Only the blocks of the last lines, in `tail`, are parsed again;
 * the blocks before can no longer change.
 */
export class GrowingMarkdown {
  /** @param {HTMLElement} parent Takes the blocks; the growing ones in an element of their own. */
  constructor(parent) {
    this.parent = parent;
    this.tail = element("div", "tail");
    this.tail.ariaLive = "off"; // screen readers read complete blocks
    this.source = "";
    /** @type {{block: object, source: string, node: HTMLElement}[]} What `tail` shows. */
    this.shown = [];
    parent.append(this.tail);
  }

  /** @param {string} text */
  add(text) {
    this.source += text;
    const lines = linesOf(this.source);
    const found = blocks(lines);
    this.#show(found.map((block, index) => ({
      block,
      source: lines.slice(block.line, found[index + 1]?.line).join("\n"),
    })));
    const whole = countWhole(found, lines);
    if (!whole) return;
    this.#release(whole);
    this.source = lines.slice(found[whole].line).join("\n");
  }

  /** The text is complete. */
  end() {
    this.#release(this.shown.length);
    this.tail.remove();
  }

  /** Keep the nodes of blocks that have not changed. */
  #show(next) {
    this.shown.slice(next.length).forEach(({ node }) => node.remove());
    next.forEach((one, index) => {
      const old = this.shown[index];
      one.node = old && (old.source === one.source || extend(old, one)) ? old.node : build(one.block);
      if (!old) this.tail.append(one.node);
      else if (old.node !== one.node) old.node.replaceWith(one.node);
    });
    this.shown = next;
  }

  /** Move the first blocks out of `tail`. Moving a node takes the focus from its content. */
  #release(count) {
    const focused = document.activeElement;
    for (const { node } of this.shown.splice(0, count)) this.parent.insertBefore(node, this.tail);
    if (this.parent.contains(focused)) focused.focus({ preventScroll: true });
  }
}

/**
 * The number of first blocks that can no longer change. The last line can, and it may continue the
 * block before it unless an empty line has ended that block.
 */
function countWhole(found, lines) {
  const [before, last] = [found.at(-2), found.at(-1)];
  if (!before) return 0;
  if (last.line < lines.length - 1) return found.length - 1;
  const isEnded = before.kind !== "list" && lines[last.line - 1].trim() === "";
  return isEnded ? found.length - 1 : found.length - 2;
}

const linesOf = (text) => text.replaceAll("\r\n", "\n").split("\n");

/** Extend a block of code in place: the user may have scrolled it or selected text in it. */
function extend(old, { block }) {
  const isSame = old.block.kind === "code" && block.kind === "code";
  if (!isSame || old.block.language !== block.language) return false;
  if (!block.text.startsWith(old.block.text)) return false;
  old.node.querySelector("code").firstChild.appendData(block.text.slice(old.block.text.length));
  return true;
}

/** @param {import("./blocks.js").Block} block @returns {HTMLElement} */
function build(block) {
  return BUILDERS[block.kind](block);
}

const BUILDERS = {
  paragraph: ({ text }) => element("p", "", words(text)),
  heading: ({ level, text }) => element(`h${Math.min(level + 2, 6)}`, "", words(text)),
  rule: () => element("hr"),
  quote: (block) => element("blockquote", "", block.blocks.map(build)),
  code: buildCode,
  list: buildList,
  table: buildTable,
};

function buildCode({ language, text }) {
  const copy = element("button", "quiet", ["Copy"]);
  copy.type = "button";
  copy.dataset.act = "copy-code";
  copy.ariaLabel = "Copy this code";
  const pre = element("pre", "", [element("code", "", [text])]);
  pre.tabIndex = 0; // so that the keyboard can scroll it
  pre.setAttribute("role", "group");
  pre.ariaLabel = language ? `Code, ${language}` : "Code";
  return element("div", "code", [element("div", "code-bar", [element("span", "", [language]), copy]), pre]);
}

function buildList({ start, items }) {
  const made = element(start === null ? "ul" : "ol");
  if (start !== null && start !== 1) made.start = start;
  const isTight = items.every((item) => item.filter(({ kind }) => kind === "paragraph").length < 2);
  for (const item of items) {
    const nodes = item.flatMap((block) =>
      isTight && block.kind === "paragraph" ? words(block.text) : [build(block)]);
    made.append(element("li", "", nodes));
  }
  return made;
}

function buildTable({ sides, rows }) {
  const [head, ...body] = rows.map((cells, index) => element("tr", "", cells.map((cell, column) => {
    const made = element(index ? "td" : "th", sides[column], words(cell));
    if (!index) made.scope = "col";
    return made;
  })));
  const table = element("table", "", [element("thead", "", [head]), element("tbody", "", body)]);
  const frame = element("div", "table", [table]);
  frame.tabIndex = 0;
  frame.setAttribute("role", "group");
  frame.ariaLabel = "Table";
  return frame;
}

/** The nodes of a paragraph's text. */
function words(text) {
  return [nest(inline(text))];
}

/** @param {import("./inline.js").Piece[]} pieces @returns {DocumentFragment} */
function nest(pieces) {
  const root = document.createDocumentFragment();
  let parent = root;
  for (const piece of pieces) {
    if (piece.kind === "text") parent.append(piece.text);
    else if (piece.kind === "code") parent.append(element("code", "", [piece.text]));
    else if (piece.kind === "link") parent.append(anchor(piece));
    else if (piece.kind === "close") parent = parent.parentNode;
    else parent = parent.appendChild(element(piece.name));
  }
  return root;
}

function anchor({ href, pieces }) {
  const made = element("a", "", [nest(pieces)]);
  made.href = href;
  made.rel = "noopener noreferrer";
  made.target = "_blank"; // following a link must not end a stream
  return made;
}
