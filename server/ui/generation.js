/* One stream, from its request to its end. */

import { Meter } from "./figures.js";
import { Painter } from "./painter.js";

/**
 * Take a stream's parts to its end. Text is kept at once, and shown once a frame.
 * @param {AsyncIterable<import("./streams.js").Part>} parts
 * @param {{onFirst: () => void, keep: (text: string) => void,
 *   show: (text: string, figures: import("./figures.js").Figures) => void}} reader
 * @returns {Promise<{figures: import("./figures.js").Figures, trouble: Error | null}>} What ended
 *   it is `trouble`; the figures' reason is "stopped" after an abort, else "error".
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
