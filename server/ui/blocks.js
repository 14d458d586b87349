/* Markdown's blocks: lines become paragraphs, lists and so on, each with the line it begins at.

   What is not Markdown is a paragraph; so is HTML. Nesting is bounded, so each line is looked at a
   bounded number of times. The patterns are linear: none can take the same characters in two ways.
*/

const FENCE = /^( {0,3})(`{3,}(?!`)|~{3,}(?!~))([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+([^]*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^[ \t|:-]+$/;
const MAX_DEPTH = 8;

/**
 * @typedef {{kind: "paragraph", text: string} | {kind: "heading", level: number, text: string}
 *   | {kind: "code", language: string, text: string} | {kind: "rule"}
 *   | {kind: "quote", blocks: Block[]}
 *   | {kind: "list", start: number | null, items: Block[][]}
 *   | {kind: "table", sides: string[], rows: string[][]}} Content
 * @typedef {Content & {line: number}} Block
 */

/** @param {string[]} lines Without their ends. @returns {Block[]} */
export function blocks(lines, depth = 0) {
  const readers = depth < MAX_DEPTH ? READERS : [fence, paragraph];
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    for (const read of readers) {
      const [block, next] = read(lines, at, depth) ?? [];
      if (!block) continue;
      found.push({ ...block, line: at });
      at = next;
      break;
    }
  }
  return found;
}

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

/** The line without up to `count` leading spaces. */
const outdent = (line, count) => line.slice(Math.min(indentOf(line), count));

/* Each reader takes the lines and where its block might begin. It returns the block and the line
   behind it, or nothing. */

/** A block without its end extends to the last line: the end may still come. */
function fence(lines, at) {
  const match = FENCE.exec(lines[at]);
  if (!match) return undefined;
  const [, indent, mark, info] = match;
  const isEnd = (line) => {
    const text = line.trim();
    return text.length >= mark.length && text === mark[0].repeat(text.length);
  };
  let end = at + 1;
  while (end < lines.length && !isEnd(lines[end])) end += 1;
  const inner = lines.slice(at + 1, end).map((line) => outdent(line, indent.length));
  const language = info.trim().split(/\s/, 1)[0].slice(0, 40);
  return [{ kind: "code", language, text: inner.join("\n") }, end + 1];
}

function heading(lines, at) {
  const match = HEADING.exec(lines[at]);
  return match && [{ kind: "heading", level: match[1].length, text: match[2].trim() }, at + 1];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [{ kind: "rule" }, at + 1] : undefined;
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  if (end === at) return undefined;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ kind: "quote", blocks: blocks(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first) return undefined;
  const isOrdered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let next = at;
  while (next < lines.length) {
    const match = ITEM.exec(lines[next]);
    const isNext = match && /\d/.test(match[2]) === isOrdered && match[1].length <= base + 1;
    if (!isNext || RULE.test(lines[next])) break;
    const end = endOfItem(lines, next + 1, base);
    const width = match[1].length + match[2].length + (match[3].length > 4 ? 1 : match[3].length || 1);
    const inner = lines.slice(next + 1, end).map((line) => outdent(line, width));
    items.push(blocks([lines[next].slice(width), ...inner], depth + 1));
    next = skipBlank(lines, end);
  }
  if (!items.length) return undefined;
  return [{ kind: "list", start: isOrdered ? Number.parseInt(first[2], 10) : null, items }, next];
}

/** The place after an item's lines: indented ones, and unindented ones of its paragraph. */
function endOfItem(lines, from, base) {
  let at = from;
  while (at < lines.length) {
    const isInside = indentOf(lines[at]) >= base + 2;
    const isBeside = !isBlank(lines[at - 1]) && !isBlank(lines[at]);
    const goesOn = isBeside && !ITEM.test(lines[at]) && !startsBlock(lines, at);
    if (isInside || goesOn) at += 1;
    else if (isBlank(lines[at])) {
      const next = skipBlank(lines, at);
      if (next === lines.length || indentOf(lines[next]) < base + 2) return at;
      at = next;
    } else return at;
  }
  return at;
}

function skipBlank(lines, from) {
  let at = from;
  while (at < lines.length && isBlank(lines[at])) at += 1;
  return at;
}

function table(lines, at) {
  if (!isTable(lines, at)) return undefined;
  const sides = cells(lines[at + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(":"), cell.endsWith(":")];
    return left && right ? "center" : right ? "right" : "left";
  });
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = [lines[at], ...lines.slice(at + 2, end)];
  return [{ kind: "table", sides, rows: rows.map((row) => cells(row).slice(0, sides.length)) }, end];
}

function isTable(lines, at) {
  const below = lines[at + 1] ?? "";
  const looksSo = lines[at].includes("|") && below.includes("-") && below.includes("|");
  if (!looksSo || !DELIMITERS.test(below)) return false;
  return cells(lines[at]).length === cells(below).length;
}

/** The cells of a table's line. @returns {string[]} */
function cells(line) {
  let inner = line.trim();
  if (inner.startsWith("|")) inner = inner.slice(1);
  if (inner.endsWith("|") && !inner.endsWith("\\|")) inner = inner.slice(0, -1);
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !startsBlock(lines, end)) end += 1;
  return [{ kind: "paragraph", text: lines.slice(at, end).map((line) => line.trim()).join("\n") }, end];
}

/** Whether a line ends the paragraph before it. A number that is not 1 may be a year. */
function startsBlock(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const startsList = item && item[3] && (!/\d/.test(item[2]) || /^1[.)]/.test(item[2]));
  const others = [FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line));
  return startsList || others || isTable(lines, at);
}

const READERS = [fence, heading, rule, quote, list, table, paragraph];
