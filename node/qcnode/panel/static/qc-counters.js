/** How the parts came out. */
import { el, say } from "./dom.js";
import { QcElement } from "./element.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

/** [name, shape] */
const CELLS = [
  ["parts", ""],
  ["ok", "ok"],
  ["not_ok", "not_ok"],
  ["not_decidable", "not_decidable"],
  ["undefined", "undefined"],
  ["faults", "fault"],
  ["escalated", ""],
  ["ruled", ""],
  ["waiting", ""],
];

export class QcCounters extends QcElement {
  static section = "counters";
  /** @type {Record<string, HTMLElement>} */
  #values = {};

  build() {
    for (const [name, kind] of CELLS) {
      this.#values[name] = el("b", { "data-value": name });
      const words = el("span", {}, t(`count.${name}`));
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
