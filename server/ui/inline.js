/* Markdown within a paragraph: a text becomes a flat list of pieces.

   Every pattern and loop here is linear in the text's length, whatever the text is: a model may
   write 100,000 asterisks. Depth is bounded too, for a browser lays out nested elements recursively.
*/

const TOKEN = /\\[!-/:-@[-`{-~]|`+|!?\[|<(?:https?:|mailto:)[^\s<>]{1,2000}>|https?:\/\/[^\s<>]{1,2000}|\*+|_+|~~+/g;
const LINK = /!?\[([^[\]]{1,1000})\]\(\s?((?:[^\s()<>]|\([^\s()<>]*\)){1,2000})(?:\s"[^"\n]{0,500}")?\)/y;
const SAFE = ["http:", "https:", "mailto:"];
const WORD = /[\p{L}\p{N}]/u;
const NAMES = { "*": ["em", "strong"], _: ["em", "strong"], "~": ["", "del"] };
const SMALLEST = { "*": 1, _: 1, "~": 2 };
const MAX_RUN = 3;
const MAX_DEPTH = 12;

/**
 * @typedef {{kind: "text", text: string} | {kind: "code", text: string}
 *   | {kind: "link", href: string, pieces: Piece[]}
 *   | {kind: "open" | "close", name: "em" | "strong" | "del"}
 *   | {kind: "run", char: string, left: number, opens: boolean, closes: boolean}} Piece
 */

/** The pieces of a text; those that open and close are always in pairs, and well nested. */
export function inline(text) {
  return joined(paired(pieces(text)));
}

/** The address, if a link may lead there, else null. @param {string} given */
export function safeAddress(given) {
  if (!URL.canParse(given)) return null;
  const address = new URL(given);
  return SAFE.includes(address.protocol) ? address.href : null;
}

/** @param {string} text @returns {Piece[]} */
function pieces(text) {
  const found = [];
  const ticks = backticks(text);
  let start = 0;
  const add = (piece, at, next) => {
    if (at > start) found.push({ kind: "text", text: text.slice(start, at) });
    if (piece) found.push(piece);
    start = TOKEN.lastIndex = next;
  };
  TOKEN.lastIndex = 0;
  for (let match = TOKEN.exec(text); match; match = TOKEN.exec(text)) {
    const at = match.index;
    const token = match[0];
    const next = at + token.length;
    const [piece, end] = read(text, token, at, ticks);
    if (piece) add(piece, at, end);
    else TOKEN.lastIndex = next;
  }
  add(null, text.length, text.length);
  return found;
}

/** The piece that begins with a token, and where it ends; nothing: the token is plain text. */
function read(text, token, at, ticks) {
  const next = at + token.length;
  switch (token[0]) {
    case "\\":
      return [{ kind: "text", text: token[1] }, next];
    case "`":
      return codeSpan(text, token.length, at, ticks);
    case "!":
    case "[":
      return link(text, at);
    case "<":
      return address(token.slice(1, -1), next);
    case "h":
      return bareAddress(token, at);
    default:
      return token.length <= MAX_RUN ? [run(text, token, at), next] : [];
  }
}

/** Where runs of backticks begin, by their length. @returns {Map<number, number[]>} */
function backticks(text) {
  const found = new Map();
  for (const { 0: ticks, index } of text.matchAll(/`+/g)) {
    if (!found.has(ticks.length)) found.set(ticks.length, []);
    found.get(ticks.length).push(index);
  }
  for (const places of found.values()) places.reverse(); // so that the next one is popped
  return found;
}

function codeSpan(text, length, at, ticks) {
  const places = ticks.get(length) ?? [];
  while (places.length && places.at(-1) <= at) places.pop();
  if (!places.length) return [];
  const end = places.pop();
  const inner = text.slice(at + length, end);
  const isPadded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() !== "";
  return [{ kind: "code", text: isPadded ? inner.slice(1, -1) : inner }, end + length];
}

/** A link. An image becomes a link too, because the page loads nothing from other servers. */
function link(text, at) {
  LINK.lastIndex = at;
  const match = LINK.exec(text);
  const href = match && safeAddress(match[2]);
  if (!href) return [];
  const label = inline(match[1]).filter((piece) => piece.kind !== "link");
  return [{ kind: "link", href, pieces: label }, at + match[0].length];
}

function address(given, end) {
  const href = safeAddress(given);
  const pieces = [{ kind: "text", text: given }];
  return href ? [{ kind: "link", href, pieces }, end] : [];
}

/** An address in running text, without the punctuation after it. */
function bareAddress(token, at) {
  let length = token.length;
  while (".,;:!?'\"*_`~)]}".includes(token[length - 1])) length -= 1;
  return address(token.slice(0, length), at + length);
}

/** A run of asterisks or similar, which may open or close an emphasis. */
function run(text, mark, at) {
  const before = text[at - 1] ?? " ";
  const after = text[at + mark.length] ?? " ";
  const touches = /\S/.test(after);
  const follows = /\S/.test(before);
  const isWithinWord = mark[0] === "_" && WORD.test(before) && WORD.test(after);
  const [opens, closes] = [touches && !isWithinWord, follows && !isWithinWord];
  return { kind: "run", char: mark[0], left: mark.length, opens, closes };
}

/** Replace each run by what it opens or closes; the rest of it is plain text. @param {Piece[]} given */
function paired(given) {
  const found = [];
  let open = []; // runs that something may still close, the innermost last
  for (const piece of given) {
    if (piece.kind !== "run") {
      found.push(piece);
      continue;
    }
    const { char, opens, closes } = piece;
    let { left } = piece;
    while (closes && left) {
      const index = open.findLastIndex((one) => one.char === char);
      const opener = open[index];
      const size = Math.min(2, left, opener?.left ?? 0);
      if (size < SMALLEST[char] || !opener) break;
      const name = NAMES[char][size - 1];
      opener.names.unshift(name); // the later it is closed, the farther out it is
      opener.left -= size;
      left -= size;
      found.push({ kind: "close", name });
      open = open.slice(0, opener.left ? index + 1 : index);
    }
    const rest = { kind: "run", char, left, names: [] };
    found.push(rest);
    if (opens && left && open.length < MAX_DEPTH) open.push(rest);
  }
  return found.flatMap((piece) => (piece.kind === "run" ? openings(piece) : piece));
}

const openings = ({ char, left, names }) => [
  { kind: "text", text: char.repeat(left) },
  ...names.map((name) => ({ kind: "open", name })),
];

/** Join neighbouring texts. @param {Piece[]} given */
function joined(given) {
  const found = [];
  for (const piece of given) {
    const last = found.at(-1);
    if (piece.text === "") continue;
    if (piece.kind === "text" && last?.kind === "text") last.text += piece.text;
    else found.push(piece.kind === "text" ? { ...piece } : piece);
  }
  return found;
}
