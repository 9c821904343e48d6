/** Whether this screen hears the node, and the node's own clock. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { shape } from "./shapes.js";

export class QcLink extends QcElement {
  static section = "pulse";

  /** @param {any} pulse */
  render(pulse) {
    this.className = pulse ? "" : "bad";
    this.replaceChildren(shape(pulse ? "well" : "unwell"), el("span", {}, pulse ? `live ${pulse.now}` : "NO LIVE DATA"));
  }
}
