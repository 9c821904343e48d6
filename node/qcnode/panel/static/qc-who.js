/** Who stands here and as what; a way in, and a way out. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { t } from "./words.js";

export class QcWho extends QcElement {
  static section = "who";
  /** @type {string} what is shown, so that a form under a finger is not replaced */
  #shown = "";

  /** @param {any} who */
  render(who) {
    const shown = who ? `${who.name} ${who.role} ${who.idle_soon}` : "";
    if (shown === this.#shown && this.firstChild) return;
    this.#shown = shown;
    if (!who?.name) {
      const to = document.body.dataset.path ?? "/";
      this.replaceChildren(
        el("span", { class: "fine" }, who ? who.role_word : ""),
        el("a", { class: "button", href: `/login?to=${encodeURIComponent(to)}` }, t("sign.in")),
      );
      return;
    }
    const words = el("span", { class: "name" }, el("b", {}, who.name), el("span", { class: "fine" }, who.idle_soon ? t("idle.soon") : who.role_word));
    this.replaceChildren(
      words,
      el("form", { method: "post", action: "/logout" }, el("button", { type: "submit", class: "button" }, t("sign.out"))),
    );
  }
}
