/** Whether this screen hears the node, and the node's own clock. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { t } from "./words.js";

export class QcLink extends QcElement {
  static section = "pulse";

  /** @param {any} pulse */
  render(pulse) {
    this.className = pulse ? "" : "bad";
    this.replaceChildren(el("span", {}, pulse ? pulse.now : t("no_live_data")));
  }
}
