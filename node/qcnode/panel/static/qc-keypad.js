/** Names and digits of a size for gloves, in front of the same form that keys fill. */
import { el } from "./dom.js";
import { t } from "./words.js";

export class QcKeypad extends HTMLElement {
  connectedCallback() {
    const form = this.closest("form");
    const secret = /** @type {HTMLInputElement|null} */ (form?.querySelector("[name=secret]") ?? null);
    const name = /** @type {HTMLInputElement|null} */ (form?.querySelector("[name=name]") ?? null);
    if (!secret || !name || this.firstChild) return;
    const names = (this.dataset.names ?? "").split("\n").filter(Boolean);
    const tiles = el("div", { class: "tiles" });
    for (const one of names) {
      tiles.append(this.#key(one, () => {
        name.value = one;
        secret.value = "";
        secret.focus({ preventScroll: true });
      }));
    }
    const keys = el("div", { class: "keys" });
    for (const digit of "123456789") keys.append(this.#key(digit, () => (secret.value += digit)));
    keys.append(this.#key("\u232b", () => (secret.value = secret.value.slice(0, -1)), t("key.back")), this.#key("0", () => (secret.value += "0")));
    this.append(tiles, keys);
  }

  /**
   * @param {string} words
   * @param {() => void} press
   * @param {string} [label]
   */
  #key(words, press, label = words) {
    const key = el("button", { type: "button", class: "button", "aria-label": label }, words);
    key.addEventListener("click", press);
    return key;
  }
}
