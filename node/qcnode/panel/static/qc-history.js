/** What happened to the alarms: how often they come, which most often, and who did what. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { ask, table } from "./table.js";
import { t } from "./words.js";

export class QcHistory extends QcElement {
  static section = "alarms";
  #shown = "";

  /** @param {any} alarms */
  render(alarms) {
    if (!alarms) {
      this.#shown = "";
      this.replaceChildren(el("p", {}, DASH));
      return;
    }
    const shown = JSON.stringify([alarms.rows.map((/** @type {any} */ row) => [row.key, row.state]), alarms.away.length, alarms.help !== null]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#read();
  }

  async #read() {
    const told = await ask("/api/v1/alarms");
    if (!told) {
      this.#shown = "";
      this.replaceChildren(el("p", {}, DASH));
      return;
    }
    const rate = el("p", { class: told.rate > 1 ? "warn" : "" }, el("b", { "data-value": "rate" }, String(told.rate)), ` ${t("alarms.rate")}`);
    const day = el("p", {}, el("b", { "data-value": "day" }, String(told.day)), ` ${t("alarms.day")}`);
    const often = el("ol", {}, ...told.frequent.map((/** @type {any} */ one) => el("li", {}, `${one.name}: ${one.count}`)));
    const rows = told.events.map((/** @type {any} */ one) => [one.at, one.name, one.what, one.who, one.reason]);
    const heads = ["at", "alarm", "what", "who", "reason"].map((name) => t(`head.${name}`));
    this.replaceChildren(
      el("div", { class: "rates" }, rate, day, el("h2", {}, t("alarms.frequent")), often),
      el("div", {}, el("h2", {}, t("alarms.journal")), table(heads, rows)),
    );
  }
}
