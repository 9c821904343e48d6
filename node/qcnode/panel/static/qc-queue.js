/** How many parts wait for a person, and the one press that leads to the oldest. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { t } from "./words.js";

export class QcQueue extends QcElement {
  static section = "queue";

  /** @param {any} queue */
  render(queue) {
    const total = queue ? String(queue.total) : DASH;
    const words = queue?.total ? t("queue.oldest", { age: queue.oldest }) : queue ? t("queue.none") : "";
    this.toggleAttribute("data-some", Boolean(queue?.total));
    const link = el("a", { href: "/review", class: "button go" }, t("queue.go"));
    if (this.querySelector("a")) {
      // The link stays the same, so that a finger on it is not let down.
      this.querySelector("b")?.replaceChildren(total);
      this.querySelector("p")?.replaceChildren(words);
      return;
    }
    this.append(el("h2", {}, t("queue.title")), el("b", { "data-value": "queue" }, total), el("p", {}, words), link);
  }
}
