/* What is shown: the turns of a chat, or a text and its continuation. */

import { pairs } from "./figures.js";
import { element, GrowingMarkdown, markdown } from "./markdown.js";

/** Change the page; a reader at its end stays there. @param {() => void} change */
export function following(change) {
  const page = document.documentElement;
  const isAtEnd = page.scrollHeight - page.clientHeight - page.scrollTop < 64;
  change();
  if (isAtEnd) toEnd();
}

export function toEnd() {
  const page = document.documentElement;
  page.scrollTop = page.scrollHeight;
}

/** @param {string} act What a click does; the page's listener knows. @param {string} label */
function button(act, label) {
  const made = element("button", "quiet", [label]);
  made.type = "button";
  made.dataset.act = act;
  return made;
}

/** Show figures in a <dl>. @param {HTMLElement} list @param {import("./figures.js").Figures} figures */
function showFigures(list, figures) {
  list.replaceChildren(...pairs(figures).map(([name, text]) =>
    element("div", "", [element("dt", "", [name]), element("dd", "", [text])])));
}

/** The list of turns. Turns that are the same objects keep their elements. */
export class ChatView {
  /** @param {HTMLElement} log */
  constructor(log) {
    this.log = log;
    /** @type {{turn: import("./conversation.js").Turn, view: TurnView}[]} */
    this.shown = [];
  }

  /** @param {import("./conversation.js").Turn[]} turns */
  show(turns) {
    const differs = turns.findIndex((turn, index) => turn !== this.shown[index]?.turn);
    const same = differs < 0 ? turns.length : differs;
    this.shown.splice(same).forEach(({ view }) => view.article.remove());
    for (const turn of turns.slice(same)) {
      const view = turn.role === "user" ? new UserView(turn) : new AnswerView(turn);
      this.shown.push({ turn, view });
      this.log.append(view.article);
    }
  }

  /** The view of the last turn. */
  get last() {
    return this.shown.at(-1)?.view;
  }

  /** The turn that an element is in. @param {Element} inside */
  turnOf(inside) {
    return this.shown.find(({ view }) => view.article.contains(inside))?.turn;
  }
}

class UserView {
  constructor({ content }) {
    const text = element("p", "said", [content]);
    text.dir = "auto";
    this.article = element("article", "turn user", [element("h2", "visually-hidden", ["You"]), text]);
    this.article.ariaLive = "off"; // its writer knows it
  }
}

/** An answer that is whole, or, without figures yet, one that grows. */
class AnswerView {
  constructor({ content, figures }) {
    this.body = element("div", "answer");
    this.body.dir = "auto";
    this.figures = element("dl", "figures");
    this.tools = element("div", "buttons", [button("copy", "Copy"), button("retry", "Retry")]);
    const foot = element("div", "foot", [this.tools, this.figures]);
    foot.ariaLive = "off";
    const title = element("h2", "visually-hidden", ["Answer"]);
    this.article = element("article", "turn", [title, this.body, foot]);
    if (figures) this.#showWhole(content, figures);
    else this.begin();
  }

  begin() {
    this.growing = new GrowingMarkdown(this.body);
    this.article.ariaBusy = "true";
    this.tools.hidden = true;
  }

  add(text, figures) {
    if (text) this.growing.add(text);
    showFigures(this.figures, figures);
  }

  end(figures) {
    this.growing.end();
    this.article.ariaBusy = "false";
    this.tools.hidden = false;
    showFigures(this.figures, figures);
  }

  #showWhole(content, figures) {
    for (const node of markdown(content)) this.body.append(node);
    showFigures(this.figures, figures);
  }
}

/** A text and what was written behind it. */
export class TextView {
  /** @param {HTMLElement} section */
  constructor(section) {
    this.section = section;
    this.text = section.querySelector("#text");
    this.figures = section.querySelector(".figures");
    this.tools = section.querySelector(".buttons");
    this.written = document.createTextNode("");
    section.querySelector("#written").append(this.written);
  }

  /** @param {import("./conversation.js").Text | null} text */
  show(text) {
    this.section.hidden = !text;
    this.section.querySelector("#given").textContent = text?.given ?? "";
    this.written.data = text?.written ?? "";
    this.section.ariaBusy = String(Boolean(text && !text.figures));
    this.tools.hidden = !text?.figures;
    showFigures(this.figures, text?.figures ?? {});
  }

  add(text, figures) {
    this.written.appendData(text);
    showFigures(this.figures, figures);
  }

  end(figures) {
    this.section.ariaBusy = "false";
    this.tools.hidden = false;
    showFigures(this.figures, figures);
  }
}
