/** The words beside the picture: verdict, score, action, from the very same message. */
import { DASH, el, say } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { drawScale } from "./scale.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

const ROWS = ["part_id", "action", "latency", "captured", "age"];

export class QcPart extends QcElement {
  static section = "pulse";
  /** @type {Record<string, HTMLElement>} */
  #values = {};

  build() {
    this.verdict = el("p", { class: "verdict" });
    this.scale = el("div", { class: "scale" });
    this.reason = el("p", { class: "reason" });
    const list = el("dl", { class: "facts" });
    for (const name of ROWS) {
      this.#values[name] = el("dd", { "data-value": name });
      list.append(el("div", {}, el("dt", {}, t(`fact.${name}`)), this.#values[name]));
    }
    this.append(this.verdict, this.scale, this.reason, list);
    link.addEventListener("part", (event) => this.#take(/** @type {CustomEvent} */ (event).detail));
    link.addEventListener("lost", () => this.#blank());
    link.addEventListener("state", () => {
      if (link.sections.health && !link.sections.health.line_well) this.#blank();
    });
    this.#blank();
  }

  /** @param {any} pulse */
  render(pulse) {
    say(this.#values.age, pulse?.part_age);
  }

  /** @param {import("./message.js").Part} message */
  #take({ header }) {
    const part = header.part;
    this.dataset.number = String(part.number);
    this.dataset.kind = part.verdict.kind;
    this.verdict?.replaceChildren(shape(part.verdict.kind), el("span", {}, t(`verdict.${part.verdict.kind}`)));
    if (this.scale) drawScale(this.scale, part.scale);
    if (this.reason) this.reason.textContent = part.reason ?? "";
    for (const name of ["part_id", "action", "latency", "captured"]) say(this.#values[name], part[name]);
  }

  #blank() {
    delete this.dataset.number;
    delete this.dataset.kind;
    this.verdict?.replaceChildren(el("span", {}, DASH));
    if (this.scale) drawScale(this.scale, null);
    if (this.reason) this.reason.textContent = "";
    for (const value of Object.values(this.#values)) say(value, null);
  }
}
