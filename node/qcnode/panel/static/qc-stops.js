/** What is stopped and by whom; stopping one thing alone, and clearing by two people. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { guard } from "./rights.js";
import { send } from "./send.js";
import { t } from "./words.js";

export class QcStops extends QcElement {
  static section = "stops";

  build() {
    this.list = el("ul", { class: "rows" });
    this.buttons = el("p", { class: "buttons" });
    this.reason = /** @type {HTMLInputElement} */ (
      el("input", { type: "text", maxlength: "300", "aria-label": t("stop.reason"), placeholder: t("stop.reason") })
    );
    this.told = el("p", { role: "status" });
    this.append(el("h2", {}, t("stop.title")), this.list, this.reason, this.buttons, this.told);
  }

  /** @param {any} stops */
  render(stops) {
    if (!this.list || !this.buttons) return;
    const active = stops?.active ?? [];
    this.list.replaceChildren(...active.map((/** @type {any} */ one) => this.#row(one)));
    if (!active.length) this.list.append(el("li", {}, stops ? t("stop.none") : "\u2014"));
    const stopped = new Set(active.map((/** @type {any} */ one) => one.scope));
    const free = (stops?.scopes ?? []).filter((/** @type {any} */ one) => !stopped.has(one.scope));
    this.buttons.replaceChildren(...free.map((/** @type {any} */ one) => this.#stopper(one)));
  }

  /** @param {any} one */
  #row(one) {
    const said = [one.who, one.reason].filter(Boolean).join(": ");
    const asked = one.asked_by ? el("small", {}, t("stop.asked", { who: one.asked_by })) : "";
    const words = one.asked_by ? t("stop.clear") : t("stop.ask");
    const button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button" }, words));
    button.addEventListener("click", () => this.#send("/api/v1/stops/clear", one.scope));
    guard(button, "clear");
    return el("li", { "data-scope": one.scope }, el("b", {}, one.name), " ", said, " ", asked, " ", button);
  }

  /** @param {any} one */
  #stopper(one) {
    const words = t("stop.this", { what: one.name });
    const button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button" }, words));
    button.addEventListener("click", () => this.#send("/api/v1/stops", one.scope));
    guard(button, "stop");
    return button;
  }

  /**
   * @param {string} path
   * @param {string} scope
   */
  async #send(path, scope) {
    const answer = await send(path, { scope, reason: this.reason?.value ?? "" });
    if (this.told) this.told.textContent = answer.ok ? (answer.answer?.words ?? "") : answer.words;
  }
}
