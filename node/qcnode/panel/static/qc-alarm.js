/** The worst thing that is not well, in words, at the top of the screen. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { shape } from "./shapes.js";

export class QcAlarm extends QcElement {
  static section = "health";

  /** @param {any} health */
  render(health) {
    const alarm = health?.alarm;
    this.className = alarm ? (alarm.needed ? "bad" : "warn") : "";
    if (!alarm) {
      this.replaceChildren();
      return;
    }
    this.replaceChildren(shape("unwell"), el("span", { title: alarm.words }, alarm.words));
    if (alarm.more > 0) this.append(el("b", {}, `and ${alarm.more} more`));
  }
}
