/** How the parts came out. */
import { el, say } from "./dom.js";
import { QcElement } from "./element.js";
import { shape } from "./shapes.js";

/** [name, label, shape] */
const CELLS = [
  ["parts", "parts", ""],
  ["ok", "OK", "ok"],
  ["not_ok", "NOT OK", "not_ok"],
  ["not_decidable", "not decidable", "not_decidable"],
  ["undefined", "undefined", "undefined"],
  ["faults", "faults", "fault"],
  ["escalated", "escalated", ""],
  ["ruled", "ruled", ""],
  ["waiting", "waiting", ""],
];

export class QcCounters extends QcElement {
  static section = "counters";
  /** @type {Record<string, HTMLElement>} */
  #values = {};

  build() {
    for (const [name, label, kind] of CELLS) {
      this.#values[name] = el("b", { "data-value": name });
      const words = el("span", {}, label);
      if (kind) words.prepend(shape(kind));
      this.append(el("p", {}, this.#values[name], words));
    }
  }

  /** @param {Record<string, string>|null} counters */
  render(counters) {
    for (const [name, value] of Object.entries(this.#values)) {
      say(value, counters?.[name]);
      value.parentElement?.toggleAttribute("data-none", !counters || counters[name] === "0");
    }
  }
}
