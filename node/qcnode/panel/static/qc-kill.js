/** Stops everything: a first press readies it, a second one within five seconds does it. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { guard } from "./rights.js";
import { send } from "./send.js";
import { t } from "./words.js";

const READY_MS = 5000;

export class QcKill extends QcElement {
  static section = "stops";
  #ready = 0;

  build() {
    this.button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button kill" }));
    this.button.addEventListener("click", () => this.#press());
    this.append(this.button);
  }

  /** @param {any} stops */
  render(stops) {
    if (!this.button) return;
    const names = (stops?.active ?? []).map((/** @type {any} */ one) => one.name).join(", ");
    this.toggleAttribute("data-stopped", names !== "");
    const ready = Date.now() < this.#ready;
    this.toggleAttribute("data-ready", ready);
    const words = ready ? t("stop.really") : names ? t("stop.on", { what: names }) : t("stop.all");
    if (this.button.textContent !== words) this.button.textContent = words;
    guard(this.button, "stop");
  }

  async #press() {
    if (Date.now() < this.#ready) {
      this.#ready = 0;
      await send("/api/v1/stops", { scope: "all" });
    } else {
      this.#ready = Date.now() + READY_MS;
      setTimeout(() => this.refresh(), READY_MS + 50);
    }
    this.refresh();
  }
}
