/** One line as a tile for a wall: how it runs, in figures that can be read from six metres. */
import { DASH, el, say } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

export class QcTile extends QcElement {
  static section = "wall";
  /** @type {Record<string, HTMLElement>} */
  #values = {};

  build() {
    this.state = el("p", { class: "state" });
    const cells = ["yield", "rate", "waiting", "help"].map((name) => {
      this.#values[name] = el("b", { "data-value": name });
      return el("div", {}, this.#values[name], el("span", {}, t(`wall.${name}`)));
    });
    this.alarm = el("p", { class: "worst" });
    this.append(this.state, el("div", { class: "cells" }, ...cells), this.alarm);
  }

  /** @param {any} wall */
  render(wall) {
    for (const [name, value] of Object.entries(this.#values)) say(value, wall?.[name] ?? DASH);
    const well = wall?.running;
    this.state?.replaceChildren(shape(wall ? (well ? "well" : "unwell") : "silent"), el("span", {}, t(wall ? (well ? "wall.runs" : "wall.stands") : "no_live_data")));
    this.toggleAttribute("data-unwell", !well);
    const worst = link.sections.alarms?.worst;
    if (this.alarm) this.alarm.className = `worst p${worst?.priority ?? ""}`;
    this.alarm?.replaceChildren(wall && worst ? `${worst.priority} \u00b7 ${worst.name}` : "");
  }
}
