/* Text that arrives is painted once a frame, however many tokens a frame brings. */

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

  /** Paint what waits now: nothing more comes. A hidden tab has no frames. */
  end() {
    cancelAnimationFrame(this.frame);
    this.#paint();
  }

  #onFrame() {
    this.frame = 0;
    if (performance.now() < this.due) this.add("");
    else this.#paint();
  }

  /** A paint that took long is followed by a pause, so that the page can always be used. */
  #paint() {
    const started = performance.now();
    this.paint(this.waiting);
    this.waiting = "";
    const ended = performance.now();
    this.due = ended + (ended - started) * (SHARE - 1);
  }
}
