/**
 * The fixed bar under a waiting part. It says what was pressed as an event `chosen`, with
 * `finding` and `defectClass`, or as `undo`; whether that counts is for the review to say.
 */
import { el } from "./dom.js";
import { guard } from "./rights.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

/** [finding, key] */
const CHOICES = [
  ["good", "g"],
  ["defective", "r"],
  ["unsure", "s"],
];
const CLASSES_MAX = 9;

export class QcDecide extends HTMLElement {
  /** @type {string[]} */
  #classes = [];
  #asking = false;

  connectedCallback() {
    if (this.firstChild) return;
    this.classes = el("div", { class: "classes" });
    this.bar = el("div", { class: "decide" });
    for (const [finding, key] of CHOICES) this.bar.append(this.#button(finding, key, t(`finding.${finding}`), () => this.#choose(finding)));
    this.undo = this.#button("undo", "u", t("undo"), () => this.dispatchEvent(new Event("undo")));
    this.bar.append(this.undo);
    this.append(this.classes, this.bar);
    document.addEventListener("keydown", (event) => this.#key(event));
  }

  /** @param {string[]} names of defects that a rejected part may be given */
  offer(names) {
    const shown = names.slice(0, CLASSES_MAX);
    if (shown.join("\n") === this.#classes.join("\n")) return;
    this.#classes = shown;
    this.classes?.replaceChildren(
      ...shown.map((name, index) => this.#button("class", String(index + 1), name, () => this.#tell("defective", name))),
    );
  }

  /**
   * @param {boolean} open whether there is a part to decide
   * @param {any} undoable the decision that can be taken back, null for none
   */
  allow(open, undoable) {
    if (!open) this.ask(false);
    for (const button of this.querySelectorAll("button")) guard(button, "review", button === this.undo ? Boolean(undoable) : open);
    const words = undoable ? t("undo.left", { s: undoable.left_s }) : t("undo");
    this.undo?.querySelector("span")?.replaceChildren(words);
  }

  /** @param {boolean} asking whether the defect of a rejected part is being asked for */
  ask(asking) {
    this.#asking = asking;
    this.toggleAttribute("data-asking", asking);
    this.bar?.querySelector("[data-finding=defective] span")?.replaceChildren(t(asking ? "reject.unnamed" : "finding.defective"));
  }

  /** @param {string} finding */
  #choose(finding) {
    // A rejected part is asked for its defect once; pressing again leaves it unnamed.
    if (finding === "defective" && this.#classes.length && !this.#asking) this.ask(true);
    else this.#tell(finding, null);
  }

  /**
   * @param {string} finding
   * @param {string|null} defectClass
   */
  #tell(finding, defectClass) {
    this.ask(false);
    this.dispatchEvent(new CustomEvent("chosen", { detail: { finding, defectClass } }));
  }

  /**
   * @param {string} finding
   * @param {string} key
   * @param {string} words
   * @param {() => void} press
   */
  #button(finding, key, words, press) {
    const button = /** @type {HTMLButtonElement} */ (
      el("button", { type: "button", "data-finding": finding, "aria-keyshortcuts": key }, shape(finding), el("span", {}, words), el("kbd", {}, key.toUpperCase()))
    );
    button.disabled = true;
    button.addEventListener("click", press);
    return button;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (key === "escape") this.ask(false);
    const button = /** @type {HTMLButtonElement|null} */ (this.querySelector(`[aria-keyshortcuts="${CSS.escape(key)}"]`));
    if (button && !button.disabled) button.click();
  }
}
