/** The last verdicts, newest at the right: each kind has a height and a pattern of its own. */
import { el, say, svg } from "./dom.js";
import { QcElement } from "./element.js";
import { t } from "./words.js";

const SLOTS = 120;
/** Bars of each kind, as [top, height] of 32. */
const BARS = {
  ok: [[24, 8]],
  not_decidable: [[12, 8], [24, 8]],
  undefined: [[0, 6], [26, 6]],
  fault: [[0, 6], [9, 6], [18, 6], [27, 5]],
  not_ok: [[0, 32]],
};

export class QcStrip extends QcElement {
  static section = "strip";

  build() {
    this.drawing = svg("svg", { viewBox: `0 0 ${SLOTS * 8} 32`, preserveAspectRatio: "none", role: "img" });
    this.words = el("p", {});
    this.append(this.drawing, this.words);
  }

  /** @param {{kinds: string[], words: string}|null} strip */
  render(strip) {
    const kinds = strip?.kinds ?? [];
    const first = SLOTS - kinds.length;
    const bars = kinds.flatMap((kind, index) =>
      BARS[/** @type {keyof BARS} */ (kind)].map(([top, height]) =>
        svg("rect", { class: kind, x: (first + index) * 8 + 1, y: top, width: 6, height }),
      ),
    );
    this.drawing?.replaceChildren(...bars);
    this.drawing?.setAttribute("aria-label", strip?.words ?? t("unknown"));
    if (this.words) say(this.words, strip?.words);
  }
}
