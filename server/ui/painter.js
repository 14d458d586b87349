/* Paints arriving text once in each frame, however many tokens arrive. */

const SHARE = 4;

export class Painter {
  /** @param {(text: string) => void} paint */
  constructor(paint) {
    this.paint = paint;
    this.waiting = "";
    this.frame = 0;
    this.due = 0;
  }

  /** @param {string} text */
  add(text) {
    this.waiting += text;
    this.frame ||= requestAnimationFrame(() => this.#onFrame());
  }

  /** Paint the rest now, at the end of the text. A hidden tab has no frames. */
  end() {
    cancelAnimationFrame(this.frame);
    this.#paint();
  }

  #onFrame() {
    this.frame = 0;
    if (performance.now() < this.due) this.add("");
    else this.#paint();
  }

  /** After a slow paint comes a pause, so that the page stays responsive. */
  #paint() {
    const started = performance.now();
    this.paint(this.waiting);
    this.waiting = "";
    const ended = performance.now();
    this.due = ended + (ended - started) * (SHARE - 1);
  }
}
