/** What is said of a waiting part: why it waits, its score, and the agent's opinion of it. */
import { DASH, el } from "./dom.js";
import { drawScale } from "./scale.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

/**
 * @param {any} proposal
 * @returns {HTMLElement}
 */
export function opinion(proposal) {
  const head = el("h3", {}, shape(proposal.kind), `${proposal.word}${proposal.defect_class ? `: ${proposal.defect_class}` : ""}`);
  const by = el("p", { class: "fine" }, el("span", { class: "chip" }, proposal.by), ` ${proposal.who}`);
  if (proposal.confidence) by.append(`, ${t("confidence", { share: proposal.confidence })}`);
  const box = el("div", { class: "proposal" }, head, el("p", {}, proposal.reason), by);
  if (proposal.awaits) box.prepend(el("p", { class: "awaits" }, t("proposal.awaits")));
  return box;
}

export class QcCase extends HTMLElement {
  /**
   * @param {any} part null for none
   * @param {string} calm what stands there instead
   */
  show(part, calm) {
    if (!part) {
      this.replaceChildren(el("p", { class: "calm" }, calm || DASH));
      return;
    }
    const scale = el("div", { class: "scale" });
    drawScale(scale, part.scale);
    const waits = el("p", { class: part.late ? "warn" : "fine" }, t("waiting.since", { age: part.age, expires: part.expires }));
    this.replaceChildren(el("p", { class: "reason" }, part.reason), scale, waits, this.#said(part));
  }

  /** @param {any} part */
  #said(part) {
    if (part.proposal) {
      const box = opinion(part.proposal);
      if (part.why) box.prepend(el("p", { class: "fine why" }, part.why));
      return box;
    }
    if (part.why) return el("p", { class: "fine why" }, part.why);
    if (part.look_first) return el("p", { class: "fine" }, t("look_first"));
    return el("p", { class: "fine" }, part.with_agent ? t("agent.asked.yours") : "");
  }
}
