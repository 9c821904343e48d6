/** The budgets as bars without a figure: how much is gone, and where they end. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { bar } from "./budgets.js";
import { t } from "./words.js";

export class QcBars extends QcElement {
  static section = "bars";

  /** @param {any} bars */
  render(bars) {
    this.hidden = !bars;
    const list = el("ul", { class: "budgets" });
    for (const one of bars?.shown ?? []) {
      const state = el("span", { class: one.bad ? "bad" : "warn" }, one.alarm ?? "");
      list.append(el("li", {}, el("p", { class: "head" }, el("span", {}, el("b", {}, one.name), ` ${one.window}`), state), bar(one.bar)));
    }
    if (bars && !bars.shown.length) list.append(el("li", { class: "fine" }, t("budget.none")));
    this.replaceChildren(el("h2", {}, t("budgets.title")), bars ? list : el("p", {}, DASH));
  }
}
