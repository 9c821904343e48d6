/** Whether screen, cloud, broker and ledger are well: an outline when they are, words when not. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

const CHIPS = ["provider", "billing", "ledger"];

export class QcChips extends QcElement {
  static section = "health";

  /** @param {any} health */
  render(health) {
    const chips = [this.#chip("live", health ? "well" : "unwell", t(health ? "chip.live" : "chip.lost"))];
    for (const row of health?.rows ?? []) {
      if (!CHIPS.includes(row.component)) continue;
      chips.push(this.#chip(row.component, row.state, t(`chip.${row.component}.${row.state}`), row.words));
    }
    this.replaceChildren(...chips);
  }

  /**
   * @param {string} name
   * @param {string} state
   * @param {string} words
   * @param {string} [title]
   */
  #chip(name, state, words, title = "") {
    return el("span", { class: `chip-state ${state}`, "data-chip": name, title }, shape(state), el("span", {}, words));
  }
}
