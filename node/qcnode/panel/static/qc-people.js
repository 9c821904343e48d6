/** Sends the forms of the page of accounts and tokens, and says what the node said. */
import { el } from "./dom.js";
import { send } from "./send.js";
import { t } from "./words.js";

export class QcPeople extends HTMLElement {
  connectedCallback() {
    this.said = el("p", { class: "said", role: "status" });
    this.prepend(this.said);
    for (const form of this.querySelectorAll("form")) {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        this.#submit(form);
      });
    }
  }

  /** @param {HTMLFormElement} form */
  async #submit(form) {
    const fields = new FormData(form);
    /** @type {Record<string, any>} */
    const said = {};
    for (const [name, value] of fields) if (value !== "" && name !== "rights") said[name] = value;
    if (form.dataset.list) said[form.dataset.list] = fields.getAll(form.dataset.list);
    const { ok, words, answer } = await send(form.dataset.path ?? "", said, form.dataset.method ?? "POST");
    if (!ok) {
      this.said?.replaceChildren(el("span", { class: "warn" }, words || t("no_answer")));
    } else if (answer.secret) {
      // It is known to nobody once this page is left.
      this.said?.replaceChildren(t("token.once"), " ", el("code", {}, answer.secret));
    } else {
      location.reload();
    }
  }
}
