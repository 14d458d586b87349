/* The figures of a stream: measured while it runs, and reported by the server at its end. */

/**
 * @typedef {{firstMs?: number, rate?: number, tokens?: number, promptTokens?: number,
 *   reason?: string}} Figures `rate` in tokens/s, after the first token.
 */

export class Meter {
  started = performance.now();
  first = 0;
  last = 0;
  tokens = 0;

  /** Tokens have arrived. @param {number} tokens */
  add(tokens) {
    this.last = performance.now();
    this.first ||= this.last;
    this.tokens += tokens;
  }

  /** @param {import("./streams.js").End} [end] @returns {Figures} */
  figures({ reason, promptTokens, tokens = this.tokens, decodeMs = this.last - this.first } = {}) {
    const firstMs = this.first ? this.first - this.started : undefined;
    const rate = tokens > 1 && decodeMs > 0 ? ((tokens - 1) * 1000) / decodeMs : undefined;
    return { firstMs, rate, tokens, promptTokens, reason };
  }
}

/** The known figures as pairs of name and text. @param {Figures} figures */
export function pairs({ firstMs, rate, tokens, promptTokens, reason }) {
  const known = [
    ["Tokens/s", rate?.toFixed(rate < 100 ? 1 : 0)],
    ["First token", firstMs === undefined ? undefined : duration(firstMs)],
    ["Tokens", tokens?.toString()],
    ["Prompt tokens", promptTokens?.toString()],
    ["Finish reason", reason],
  ];
  return known.filter(([, text]) => text);
}

const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
