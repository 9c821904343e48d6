/** The picture of the current part with its heat map, and what keeps it from being live. */
import { el, say } from "./dom.js";
import { QcElement } from "./element.js";
import { link } from "./link.js";
import { heatPicture, paint, wipe } from "./paint.js";
import { t } from "./words.js";

export class QcFrame extends QcElement {
  static section = "health";
  /** @type {import("./message.js").Part|null} */
  #part = null;
  /** @type {OffscreenCanvas|null} */
  #heat = null;
  #hot = true;
  /** When the node was last heard, by its own clock. */
  #heard = "";

  build() {
    this.canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { role: "img", "aria-label": t("part.current") }));
    this.notice = el("p", { class: "notice", role: "status" });
    this.toggle = el("button", { type: "button", class: "tool", "aria-pressed": "true" }, t("heat"));
    this.toggle.addEventListener("click", () => this.#flip());
    this.append(this.canvas, this.notice, this.toggle);
    new ResizeObserver(() => this.#paint()).observe(this.canvas);
    link.addEventListener("part", (event) => this.#take(/** @type {CustomEvent} */ (event).detail));
    link.addEventListener("lost", (event) => this.#lose(/** @type {CustomEvent} */ (event).detail));
  }

  /** @param {any} health */
  render(health) {
    if (!health) {
      this.#tell(t("no_live_data"), this.#heard ? t("since", { at: this.#heard }) : t("connecting"));
      this.dataset.state = "dead";
    } else if (!health.line_well) {
      this.#tell(t("not_live"), `${t("component.line")}: ${health.line_words ?? ""}`);
      this.dataset.state = "dead";
    } else if (!this.#part) {
      if (this.canvas) wipe(this.canvas);
      this.#tell(t("frame.waiting"), "");
      this.dataset.state = "empty";
    } else if (!this.#part.bitmap) {
      this.#tell(t("frame.none"), this.#part.header.part.reason ?? "");
      this.dataset.state = "empty";
    } else {
      this.dataset.state = "live";
      this.notice?.replaceChildren();
    }
  }

  /**
   * What was painted stays on the canvas, greyed, and is nobody's part any more.
   * @param {string|null} last
   */
  #lose(last) {
    this.#heard = last ?? "";
    this.#part?.bitmap?.close();
    this.#part = this.#heat = null;
  }

  /**
   * @param {string} loud
   * @param {string} words
   */
  #tell(loud, words) {
    this.notice?.replaceChildren(el("strong", {}, loud), el("span", {}, words));
  }

  /** @param {import("./message.js").Part} part */
  #take(part) {
    this.#part?.bitmap?.close();
    this.#part = part;
    const size = part.header.heat;
    this.#heat = size && part.bitmap ? heatPicture(part.heat, size.width, size.height) : null;
    this.#paint();
    if (link.live) this.render(link.sections.health ?? null);
  }

  #flip() {
    this.#hot = !this.#hot;
    this.toggle?.setAttribute("aria-pressed", String(this.#hot));
    this.#paint();
  }

  #paint() {
    if (!this.canvas || !this.#part) return;
    const { bitmap, header } = this.#part;
    this.canvas.setAttribute("aria-label", t("part.named", { part: header.part.part_id }));
    if (bitmap) paint(this.canvas, bitmap, this.#hot ? this.#heat : null, null);
    else wipe(this.canvas);
    say(/** @type {Element} */ (this.toggle), t(this.#heat ? "heat" : "heat.none"));
  }
}
