/** The audit trail: what was done, by whom, from where, and how far its chain holds. */
import { DASH, el } from "./dom.js";
import { shape } from "./shapes.js";
import { ask, table } from "./table.js";
import { t } from "./words.js";

const HEADS = ["seq", "at", "who", "role", "where", "what", "subject", "before", "after", "reason"];

export class QcAudit extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    this.words = /** @type {HTMLInputElement} */ (el("input", { type: "search", "aria-label": t("audit.filter"), placeholder: t("audit.filter") }));
    const form = el("form", { class: "filter" }, this.words, el("button", { type: "submit", class: "button" }, t("audit.show")));
    form.append(el("a", { class: "button", href: "/api/v1/audit.csv", download: "audit.csv" }, "CSV"));
    this.chain = el("p", { class: "chain", role: "status" });
    this.rows = el("div", {});
    this.append(form, this.chain, this.rows);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#read();
    });
    this.#read();
  }

  async #read() {
    const told = await ask(`/api/v1/audit?words=${encodeURIComponent(this.words?.value ?? "")}`);
    if (!told) {
      this.chain?.replaceChildren(DASH);
      this.rows?.replaceChildren();
      return;
    }
    const broken = told.broken_at !== null;
    const words = broken ? t("audit.broken", { row: told.broken_at }) : t("audit.checked", { row: told.checked_to });
    this.chain?.replaceChildren(shape(broken ? "unwell" : "well"), el("span", { class: broken ? "bad" : "" }, words));
    const rows = told.rows.map((/** @type {any} */ row) => HEADS.map((name) => (name === "at" ? row.at.replace("T", " ").slice(0, 19) : row[name])));
    this.rows?.replaceChildren(table(HEADS.map((name) => t(`head.${name}`)), rows));
  }
}
