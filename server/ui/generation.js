/* One stream, from its request to its end. */

import { Meter } from "./figures.js";
import { Painter } from "./painter.js";

/**
 * Read a stream to its end. Text is saved at once, and shown once in each frame.
 * @param {AsyncIterable<import("./streams.js").Part>} parts
 * @param {{onFirst: () => void, keep: (text: string) => void,
 *   show: (text: string, figures: import("./figures.js").Figures) => void}} reader
 * @returns {Promise<{figures: import("./figures.js").Figures, trouble: Error | null}>} `trouble`
 *   is the error; the figures' reason is then "stopped" after an abort, else "error".
 */
export async function follow(parts, { onFirst, keep, show }) {
  const meter = new Meter();
  const painter = new Painter((text) => show(text, meter.figures()));
  let end;
  let trouble = null;
  try {
    for await (const part of parts) {
      end = part.end;
      if (!part.tokens) continue;
      if (!meter.tokens) onFirst();
      meter.add(part.tokens);
      keep(part.text);
      painter.add(part.text);
    }
  } catch (error) {
    trouble = error;
    end = { reason: error.name === "AbortError" ? "stopped" : "error" };
  }
  painter.end();
  return { figures: meter.figures(end), trouble };
}
