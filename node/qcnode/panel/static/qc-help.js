/** Calls a person to the line: one press, nobody signs in for it. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { may } from "./rights.js";
import { send } from "./send.js";
import { t } from "./words.js";

export class QcHelp extends QcElement {
  static section = "alarms";
  #busy = false;

  build() {
    this.button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button help" }));
    this.button.addEventListener("click", () => this.#press());
    this.append(this.button);
  }

  /** @param {any} alarms */
  render(alarms) {
    if (!this.button) return;
    const help = alarms?.help;
    this.toggleAttribute("data-called", Boolean(help));
    const words = help ? t(may("acknowledge") ? "help.answer" : "help.called", { since: help.since }) : t("help.call");
    if (this.button.textContent !== words) this.button.textContent = words;
    this.button.disabled = !link.live || (Boolean(help) && !may("acknowledge"));
  }

  async #press() {
    if (this.#busy) return;
    this.#busy = true;
    await send(this.hasAttribute("data-called") ? "/api/v1/help/answer" : "/api/v1/help");
    this.#busy = false;
  }
}
