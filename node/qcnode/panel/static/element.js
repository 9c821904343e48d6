/** What all elements of the panel have in common: a section of the state, and its loss. */
import { link } from "./link.js";

export class QcElement extends HTMLElement {
  /** @type {string} the section this element shows */
  static section = "";
  #built = false;

  connectedCallback() {
    if (this.#built) return;
    this.#built = true;
    this.build();
    this.render(null);
    const name = /** @type {typeof QcElement} */ (this.constructor).section;
    link.addEventListener("state", (event) => {
      const news = /** @type {CustomEvent} */ (event).detail;
      // What a person may do hangs on who they are.
      if (name in news || "who" in news) this.render(link.sections[name] ?? null);
    });
    link.addEventListener("lost", () => this.render(null));
  }

  /** Show the section as it was last told. */
  refresh() {
    const name = /** @type {typeof QcElement} */ (this.constructor).section;
    this.render(link.live ? (link.sections[name] ?? null) : null);
  }

  /** Make the children that stay. */
  build() {}

  /**
   * Show the section; null is "not known", and nothing of it may stay on the screen.
   * @param {any} _section
   */
  render(_section) {}
}
