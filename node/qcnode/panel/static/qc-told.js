/** What became of this person's own press, and beside it, for a while, what others did. */
import { el } from "./dom.js";
import { opinion } from "./qc-case.js";
import { t } from "./words.js";

const NOTE_MS = 5000;

export class QcTold extends HTMLElement {
  #failed = false;
  #fading = 0;

  connectedCallback() {
    if (this.own) return;
    this.own = el("span", {});
    this.note = el("span", { class: "note" });
    this.agent = el("div", { class: "agent" });
    this.append(this.own, this.note, this.agent);
  }

  /**
   * It stands until the next one.
   * @param {boolean} well
   * @param {string} words
   * @param {any} answer
   */
  tell(well, words, answer) {
    this.#failed = !well;
    if (!this.own) return;
    this.own.className = well ? "" : "warn";
    this.own.textContent = words;
    const agent = answer?.agent;
    const agrees = agent ? el("b", { class: answer.agrees ? "" : "warn" }, t(answer.agrees ? "agent.agrees" : "agent.differs")) : "";
    this.agent?.replaceChildren(...(agent ? [agrees, opinion({ ...agent, awaits: false })] : []));
  }

  /** Take back what went wrong with a part that is off the card. */
  forget() {
    if (this.#failed) this.tell(true, "", null);
  }

  clear() {
    this.tell(true, "", null);
    this.remark("");
  }

  /**
   * Say what others did.
   * @param {string} words
   */
  remark(words) {
    const note = this.note;
    if (!note) return;
    clearTimeout(this.#fading);
    note.textContent = words;
    if (words) this.#fading = setTimeout(() => (note.textContent = ""), NOTE_MS);
  }
}
