/**
 * One waiting part at a time, oldest first, and three fixed buttons.
 *
 * No press can decide a part the person has not seen: the part on the card changes only
 * after a decision or when somebody else settled it, and for GUARD_MS after each change
 * and each press nothing is taken.
 */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { rule } from "./rulings.js";
import { drawScale } from "./scale.js";
import { shape } from "./shapes.js";

const GUARD_MS = 400;
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
  /** @type {Set<string>} parts this person was not sure about; they come round again */
  #later = new Set();
  /** @type {Set<string>} parts decided here, until the list no longer names them */
  #done = new Set();
  #since = 0;
  #busy = false;

  build() {
    this.head = el("h2", {});
    this.evidence = /** @type {import("./qc-evidence.js").QcEvidence} */ (el("qc-evidence"));
    this.words = el("div", { class: "words" });
    this.result = el("p", { class: "result", role: "status" });
    this.bar = el("div", { class: "decide" });
    for (const [finding, words, key] of CHOICES) {
      const button = el("button", { type: "button", "data-finding": finding, "aria-keyshortcuts": key }, shape(finding), el("span", {}, words), el("kbd", {}, key.toUpperCase()));
      button.addEventListener("click", () => this.#decide(finding));
      this.bar.append(button);
    }
    this.append(this.head, el("div", { class: "body" }, this.evidence, this.words), this.result, this.bar);
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {any} waiting */
  render(waiting) {
    this.#waiting = waiting;
    if (!waiting && this.result) this.result.textContent = "";
    const listed = new Set((waiting?.parts ?? []).map((/** @type {any} */ one) => one.id));
    for (const id of this.#done) if (!listed.has(id)) this.#done.delete(id);
    this.#refresh();
  }

  #refresh() {
    const parts = (this.#waiting?.parts ?? []).filter((/** @type {any} */ one) => !this.#done.has(one.id));
    const find = () => parts.find((/** @type {any} */ one) => one.id === this.#current);
    if (!this.#busy && !find()) {
      const elsewhere = this.#current !== "" && this.#waiting && !this.#done.has(this.#current);
      if (elsewhere) this.#answer(true, "The part that was here has been settled elsewhere.");
      this.#turnTo(this.#next(parts));
    }
    const part = find();
    this.#tell(part);
    for (const button of this.bar?.querySelectorAll("button") ?? []) button.disabled = !part || !link.live;
  }

  /** @param {any[]} parts */
  #next(parts) {
    const fresh = parts.find((one) => !this.#later.has(one.id));
    if (!fresh) this.#later.clear();
    return (fresh ?? parts[0])?.id ?? "";
  }

  /** @param {string} id */
  #turnTo(id) {
    if (id === this.#current) return;
    this.#since = performance.now();
    this.#current = id;
    this.dataset.id = id;
    this.evidence?.show(id);
  }

  /** @param {any} part */
  #tell(part) {
    const total = this.#waiting?.total;
    const count = this.#waiting ? el("span", {}, total ? `${total} waiting, oldest ${this.#waiting.oldest}` : "") : el("span", {}, DASH);
    this.head?.replaceChildren(part ? `Your ruling: ${part.part_id} ` : "Your ruling ", count);
    this.toggleAttribute("data-empty", !part);
    if (!part) {
      this.words?.replaceChildren(el("p", { class: "calm" }, this.#waiting ? "No part is waiting." : DASH));
      return;
    }
    const scale = el("div", { class: "scale" });
    drawScale(scale, part.scale);
    this.words?.replaceChildren(
      el("p", { class: "reason" }, part.reason),
      scale,
      el("p", { class: "fine" }, `Waiting ${part.age}. Goes the safe way in ${part.expires}.`),
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
    if (this.#busy || !this.#current || !link.live || now - this.#since < GUARD_MS) return;
    this.#busy = true;
    this.#since = now;
    this.toggleAttribute("data-busy", true);
    const id = this.#current;
    const answer = await rule(id, finding);
    this.#busy = false;
    this.toggleAttribute("data-busy", false);
    this.#answer(answer.ok, answer.words);
    // What was not confirmed stays on the card: the list says what became of it.
    if (answer.ok && finding === "unsure") {
      this.#later.add(id);
      this.#turnTo(this.#next(this.#waiting?.parts ?? []));
    } else if (answer.ok) this.#done.add(id);
    this.#refresh();
  }

  /**
   * @param {boolean} well
   * @param {string} words
   */
  #answer(well, words) {
    if (!this.result) return;
    this.result.className = well ? "result" : "result warn";
    this.result.textContent = words;
  }
}
