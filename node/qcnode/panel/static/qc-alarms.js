/** The alarms that ask for something, each with its consequence and what to do; and those put away. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { guard } from "./rights.js";
import { send } from "./send.js";
import { priority } from "./shapes.js";
import { t } from "./words.js";

const MINUTES = [15, 60, 240, 480];

export class QcAlarms extends QcElement {
  static section = "alarms";
  /** @type {string} the alarm whose shelf form is open */
  #shelving = "";
  /** What is on the screen, so that nothing is replaced under a finger. */
  #shown = "";
  #minutes = 15;

  build() {
    this.words = el("p", { class: "warn", role: "status" });
    this.list = el("ul", { class: "rows" });
    this.away = el("ul", { class: "rows away" });
    this.awayHead = el("h2", {}, t("alarms.away"));
    this.append(this.words, this.list, this.awayHead, this.away);
  }

  /** @param {any} alarms */
  render(alarms) {
    const shown = JSON.stringify([alarms?.rows, alarms?.away, this.#shelving, this.#minutes]);
    if (shown !== this.#shown) {
      this.#shown = shown;
      const calm = el("li", { class: "calm" }, alarms ? t("alarms.none") : DASH);
      this.list?.replaceChildren(...(alarms?.rows.length ? alarms.rows.map((/** @type {any} */ row) => this.#row(row)) : [calm]));
      this.away?.replaceChildren(...(alarms?.away ?? []).map((/** @type {any} */ row) => this.#away(row)));
      this.awayHead?.toggleAttribute("hidden", !alarms?.away.length);
    }
    for (const button of this.querySelectorAll("button")) guard(button, button.dataset.right ?? "");
  }

  /** @param {any} row */
  #row(row) {
    const seen = row.acked_by ? ` \u00b7 ${t("alarm.acked_by", { who: row.acked_by })}` : "";
    const item = el(
      "li",
      { "data-alarm": row.key, "data-state": row.state, class: `p${row.priority}` },
      priority(row.priority),
      el("div", { class: "what" }, el("b", {}, row.name), el("p", {}, row.words), el("p", { class: "fine" }, `${row.state_word} \u00b7 ${t("since", { at: row.since ?? DASH })}${seen}`)),
      el("div", { class: "so" }, el("p", {}, row.consequence), el("p", {}, el("b", {}, `${t("alarm.do")}: `), row.action)),
    );
    const tools = el("div", { class: "tools" });
    if (row.state !== "acked") tools.append(this.#button("acknowledge", t("alarm.ack"), () => this.#send(row.key, "ack")));
    tools.append(this.#button("shelve", t("alarm.shelve"), () => this.#open(this.#shelving === row.key ? "" : row.key)));
    item.append(tools);
    if (this.#shelving === row.key) item.append(this.#form(row));
    return item;
  }

  /** @param {any} row */
  #form(row) {
    const reason = /** @type {HTMLInputElement} */ (el("input", { type: "text", maxlength: "300", "aria-label": t("reason"), placeholder: t("reason") }));
    const spans = MINUTES.map((minutes) => {
      const button = this.#button("shelve", t("minutes", { count: minutes }), () => {
        this.#minutes = minutes;
        for (const one of spans) one.setAttribute("aria-pressed", String(one === button));
      });
      button.setAttribute("aria-pressed", String(minutes === this.#minutes));
      return button;
    });
    const put = this.#button("shelve", t("alarm.shelve.put"), () => this.#send(row.key, "shelve", { minutes: this.#minutes, reason: reason.value }));
    const out = this.#button("maintain", t("alarm.withdraw"), () => this.#send(row.key, "withdraw", { reason: reason.value }));
    return el("div", { class: "shelf" }, reason, ...spans, put, out);
  }

  /** @param {any} row */
  #away(row) {
    const until = row.until ? ` ${t("until", { at: row.until })}` : "";
    const why = [row.reason, row.put_by].filter(Boolean).join(" \u00b7 ");
    const words = el("div", { class: "what" }, el("b", {}, row.name), el("p", { class: "fine" }, `${row.state_word}${until}`));
    const tools = el("div", { class: "tools" });
    if (row.state !== "suppressed") tools.append(this.#button("shelve", t("alarm.restore"), () => this.#send(row.key, "restore")));
    return el("li", { "data-alarm": row.key, "data-state": row.state }, priority(row.priority), words, el("div", { class: "so" }, el("p", {}, why)), tools);
  }

  /** @param {string} key */
  #open(key) {
    this.#shelving = key;
    this.#again();
  }

  #again() {
    this.render(link.sections.alarms ?? null);
  }

  /**
   * @param {string} right
   * @param {string} words
   * @param {() => void} press
   */
  #button(right, words, press) {
    const button = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button", "data-right": right }, words));
    button.addEventListener("click", press);
    return button;
  }

  /**
   * @param {string} key
   * @param {string} what
   * @param {object} [said]
   */
  async #send(key, what, said) {
    const { ok, words } = await send(`/api/v1/alarms/${key}/${what}`, said);
    if (ok) this.#shelving = "";
    this.words?.replaceChildren(ok ? "" : words || t("no_answer"));
    this.#again();
  }
}
