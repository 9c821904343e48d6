/**
 * One waiting part at a time, in the order the node lists them, and three fixed buttons.
 *
 * No press can decide a part the person has not seen: the part on the card changes only
 * after a decision or when somebody else settled it, and for GUARD_MS after each change
 * and each press nothing is taken; for SURPRISE_MS where the person did not change it.
 */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { rule } from "./rulings.js";
import { drawScale } from "./scale.js";
import { shape } from "./shapes.js";

const GUARD_MS = 400;
const SURPRISE_MS = 1000;
const NOTE_MS = 5000;
/** [finding, words, key] */
const CHOICES = [
  ["good", "Good part", "g"],
  ["defective", "Reject part", "r"],
  ["unsure", "Not sure", "s"],
];

export class QcReview extends QcElement {
  static section = "waiting";
  /** @type {any} */
  #waiting = null;
  #current = "";
  /** @type {any} the part on the card, as last heard of */
  #part = null;
  /** @type {Set<string>} parts this person was not sure about; they come round again */
  #later = new Set();
  /** @type {Set<string>} parts decided here, until the list no longer names them */
  #done = new Set();
  #locked = 0;
  #busy = false;
  #failed = false;
  #fading = 0;

  build() {
    this.head = el("h2", {});
    this.evidence = /** @type {import("./qc-evidence.js").QcEvidence} */ (el("qc-evidence"));
    this.words = el("div", { class: "words" });
    this.own = el("span", {});
    this.note = el("span", { class: "note" });
    this.bar = el("div", { class: "decide" });
    for (const [finding, words, key] of CHOICES) {
      const button = el("button", { type: "button", "data-finding": finding, "aria-keyshortcuts": key }, shape(finding), el("span", {}, words), el("kbd", {}, key.toUpperCase()));
      button.addEventListener("click", () => this.#decide(finding));
      this.bar.append(button);
    }
    this.append(this.head, el("div", { class: "body" }, this.evidence, this.words), el("p", { class: "result", role: "status" }, this.own, this.note), this.bar);
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {any} waiting */
  render(waiting) {
    this.#waiting = waiting;
    if (!waiting) {
      this.#answer(true, "");
      this.#remark("");
    }
    for (const id of this.#done) if (!this.#waits(id)) this.#done.delete(id);
    this.#refresh();
  }

  /** @param {string} id */
  #waits(id) {
    const { parts = [], more = [] } = this.#waiting ?? {};
    return more.includes(id) || parts.some((/** @type {any} */ one) => one.id === id);
  }

  #refresh() {
    const here = this.#waits(this.#current) && !this.#done.has(this.#current);
    if (!here && !this.#busy) {
      const elsewhere = this.#current !== "" && this.#waiting && !this.#done.has(this.#current);
      if (elsewhere) this.#remark(link.sections.settled?.[this.#current] ?? `${this.#part?.part_id} has been settled`);
      this.#turnTo(this.#next(), elsewhere ? SURPRISE_MS : GUARD_MS);
    }
    const heard = this.#open().find((one) => one.id === this.#current);
    if (heard || !this.#waiting || !this.#current) this.#part = heard ?? null;
    this.#tell(this.#part);
    this.evidence?.show(this.#part);
    for (const button of this.bar?.querySelectorAll("button") ?? []) button.disabled = !this.#part || !link.live;
  }

  /** @returns {any[]} the parts that are shown and not decided here */
  #open() {
    return (this.#waiting?.parts ?? []).filter((/** @type {any} */ one) => !this.#done.has(one.id));
  }

  #next() {
    const ready = this.#open().filter((one) => one.ready);
    const fresh = ready.find((one) => !this.#later.has(one.id));
    if (!fresh) this.#later.clear();
    return (fresh ?? ready[0])?.id ?? "";
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
    // What went wrong with a part is no news once it is off the card.
    if (this.#failed) this.#answer(true, "");
  }

  /** @param {any} part */
  #tell(part) {
    const total = this.#waiting?.total;
    const count = this.#waiting ? el("span", {}, total ? `${total} waiting, oldest ${this.#waiting.oldest}` : "") : el("span", {}, DASH);
    this.head?.replaceChildren(part ? `Your ruling: ${part.part_id} ` : "Your ruling ", count);
    this.toggleAttribute("data-empty", !part);
    if (!part) {
      const calm = this.#open().length > 0 ? "The agent is being asked." : "No part is waiting.";
      this.words?.replaceChildren(el("p", { class: "calm" }, this.#waiting ? calm : DASH));
      return;
    }
    const scale = el("div", { class: "scale" });
    drawScale(scale, part.scale);
    this.words?.replaceChildren(
      el("p", { class: "reason" }, part.reason),
      scale,
      el("p", { class: "fine" }, `Waiting ${part.age}. ${part.expires}.`),
      this.#proposal(part),
    );
  }

  /** @param {any} part */
  #proposal({ proposal, with_agent: asked }) {
    if (!proposal) return el("p", { class: "fine" }, asked ? "The agent is being asked. You may be faster." : "");
    const head = el("h3", {}, shape(proposal.kind), `${proposal.word}${proposal.defect_class ? `: ${proposal.defect_class}` : ""}`);
    const by = el("p", { class: "fine" }, el("span", { class: "chip" }, proposal.by), ` ${proposal.who}`);
    if (proposal.confidence) by.append(`, confidence ${proposal.confidence}`);
    const box = el("div", { class: "proposal" }, head, el("p", {}, proposal.reason), by);
    if (proposal.awaits) box.prepend(el("p", { class: "awaits" }, "Proposal, awaits your confirmation"));
    return box;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    const choice = CHOICES.find(([, , key]) => key === event.key.toLowerCase());
    if (choice) this.#decide(choice[0]);
    else if (event.key.toLowerCase() === "h") this.evidence?.flip("hot");
    else if (event.key.toLowerCase() === "z") this.evidence?.flip("near");
  }

  /** @param {string} finding */
  async #decide(finding) {
    const now = performance.now();
    if (this.#busy || !this.#current || !link.live || now < this.#locked) return;
    this.#busy = true;
    this.#locked = now + GUARD_MS;
    this.toggleAttribute("data-busy", true);
    const id = this.#current;
    const answer = await rule(id, finding);
    this.#busy = false;
    this.toggleAttribute("data-busy", false);
    this.#answer(answer.ok, answer.words);
    // What was not confirmed stays on the card: the list says what became of it.
    if (answer.ok && finding === "unsure") {
      this.#later.add(id);
      this.#turnTo(this.#next(), GUARD_MS);
    } else if (answer.ok) this.#done.add(id);
    this.#refresh();
  }

  /**
   * Say what became of this person's own press; it stands until the next one.
   * @param {boolean} well
   * @param {string} words
   */
  #answer(well, words) {
    this.#failed = !well;
    if (!this.own) return;
    this.own.className = well ? "" : "warn";
    this.own.textContent = words;
  }

  /**
   * Say what others did, beside that and for a while.
   * @param {string} words
   */
  #remark(words) {
    const note = this.note;
    if (!note) return;
    clearTimeout(this.#fading);
    note.textContent = words;
    if (words) this.#fading = setTimeout(() => (note.textContent = ""), NOTE_MS);
  }
}
