/**
 * One waiting part at a time, in the order the node lists them, and a fixed bar.
 *
 * No press can decide a part the person has not seen: the part on the card changes only
 * after a decision or when somebody else settled it, and for GUARD_MS after each change
 * and each press nothing is taken; for SURPRISE_MS where the person did not change it.
 */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { may } from "./rights.js";
import { rule } from "./rulings.js";
import { send } from "./send.js";
import { Turns } from "./turns.js";
import { t } from "./words.js";

const GUARD_MS = 400;
const SURPRISE_MS = 1000;
const RENEW_MS = 25_000;

export class QcReview extends QcElement {
  static section = "waiting";
  #turns = new Turns();
  #current = "";
  /** @type {any} the part on the card, as last heard of */
  #part = null;
  #locked = 0;
  #busy = false;

  build() {
    const [head, evidence, facts, told, bar] = ["head", "evidence", "facts", "told", "bar"].map((name) => this.querySelector(`[data-part=${name}]`));
    this.head = /** @type {HTMLElement} */ (head);
    this.evidence = /** @type {import("./qc-evidence.js").QcEvidence} */ (evidence);
    this.facts = /** @type {import("./qc-case.js").QcCase} */ (facts);
    this.told = /** @type {import("./qc-told.js").QcTold} */ (told);
    this.bar = /** @type {import("./qc-decide.js").QcDecide} */ (bar);
    this.bar.addEventListener("chosen", (event) => this.#decide(/** @type {CustomEvent} */ (event).detail));
    this.bar.addEventListener("undo", () => this.#undo());
    document.addEventListener("keydown", (event) => this.#key(event));
    setInterval(() => this.#lease(), RENEW_MS);
  }

  /** @param {any} waiting */
  render(waiting) {
    const { name = "", tag = "" } = link.sections.who ?? {};
    Object.assign(this.#turns, { name, tag });
    this.#turns.hear(waiting);
    if (!waiting) this.told?.clear();
    this.#refresh();
  }

  #refresh() {
    const { waiting, done } = this.#turns;
    const here = this.#turns.waits(this.#current) && !done.has(this.#current);
    if (!here && !this.#busy) {
      const elsewhere = this.#current !== "" && waiting && !done.has(this.#current);
      const mine = this.#turns.undoable()?.id === this.#current;
      if (elsewhere && !mine) this.told?.remark(link.sections.settled?.[this.#current] ?? t("settled.elsewhere", { part: this.#part?.part_id ?? "" }));
      this.#turnTo(this.#turns.next(), elsewhere ? SURPRISE_MS : GUARD_MS);
    }
    const heard = this.#turns.open().find((one) => one.id === this.#current);
    if (heard || !waiting || !this.#current) this.#part = heard ?? null;
    this.#show(this.#part);
  }

  /**
   * @param {string} id
   * @param {number} guard how long no press is taken
   */
  #turnTo(id, guard) {
    if (id === this.#current) return;
    this.#locked = performance.now() + guard;
    this.#current = id;
    this.dataset.id = id;
    this.bar?.ask(false);
    // What went wrong with a part is no news once it is off the card.
    this.told?.forget();
    this.#lease();
  }

  async #lease() {
    if (!this.#current || !may("review")) return;
    await send(`/api/v1/escalations/${encodeURIComponent(this.#current)}/lease`);
  }

  /** @param {any} part */
  #show(part) {
    const { waiting } = this.#turns;
    const count = el("span", {}, waiting ? this.#turns.count() : DASH);
    this.head?.replaceChildren(el("strong", {}, part?.part_id ?? t("ruling.yours")), " ", count);
    this.toggleAttribute("data-empty", !part);
    this.facts?.show(part, waiting ? this.#turns.calm() : "");
    this.evidence?.show(part);
    this.bar?.offer(link.sections.about?.defect_classes ?? []);
    this.bar?.allow(Boolean(part) && link.live, this.#turns.undoable());
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "ArrowRight") this.#turnTo(this.#turns.beside(this.#current, 1), GUARD_MS);
    else if (event.key === "ArrowLeft") this.#turnTo(this.#turns.beside(this.#current, -1), GUARD_MS);
    else if (event.key.toLowerCase() === "h") this.evidence?.flip("hot");
    else if (event.key.toLowerCase() === "z") this.evidence?.flip("near");
    else return;
    this.#refresh();
  }

  /** @param {{finding: string, defectClass: string|null}} chosen */
  async #decide({ finding, defectClass }) {
    const now = performance.now();
    if (this.#busy || !this.#current || !link.live || now < this.#locked) return;
    this.#hold(true, now);
    const id = this.#current;
    const answer = await rule(id, finding, defectClass);
    this.#hold(false, now);
    // What was not confirmed stays on the card: the list says what became of it.
    if (answer.ok && finding === "unsure") {
      this.#turns.later.add(id);
      this.#turnTo(this.#turns.next(), GUARD_MS);
    } else if (answer.ok) this.#turns.done.add(id);
    this.told?.tell(answer.ok, answer.words, answer.answer);
    this.#refresh();
  }

  async #undo() {
    const last = this.#turns.undoable();
    const now = performance.now();
    if (this.#busy || !last || !link.live) return;
    this.#hold(true, now);
    const { ok, words, answer } = await send(`/api/v1/escalations/${encodeURIComponent(last.id)}/undo`);
    this.#hold(false, now);
    if (ok) {
      this.#turns.done.delete(last.id);
      this.#turnTo(last.id, GUARD_MS);
    }
    this.told?.tell(ok, ok ? answer.words : words || t("ruled.unconfirmed"), null);
    this.#refresh();
  }

  /**
   * @param {boolean} busy
   * @param {number} now
   */
  #hold(busy, now) {
    this.#busy = busy;
    this.#locked = now + GUARD_MS;
    this.toggleAttribute("data-busy", busy);
  }
}
