/** The picture of a waiting part: where the evidence is, or whole, with heat or without. */
import { el } from "./dom.js";
import { heatPicture, paint, wipe } from "./paint.js";
import { t } from "./words.js";

/**
 * @param {string} url
 * @returns {Promise<{bitmap: ImageBitmap, box: string|null}|null>}
 */
async function picture(url) {
  const answer = await fetch(url).catch(() => null);
  if (!answer?.ok) return null;
  const bitmap = await createImageBitmap(await answer.blob()).catch(() => null);
  return bitmap && { bitmap, box: answer.headers.get("qcnode-box") };
}

/** @param {ImageBitmap} bitmap a picture in grey */
function heatOf(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  if (!context) return null;
  context.drawImage(bitmap, 0, 0);
  const grey = context.getImageData(0, 0, width, height).data.filter((_, index) => index % 4 === 0);
  return heatPicture(grey, width, height);
}

export class QcEvidence extends HTMLElement {
  /** what is shown or on its way: the id, and what is kept of the part */
  #wanted = "";
  #near = true;
  #hot = true;
  /** @type {ImageBitmap|null} */
  #bitmap = null;
  /** @type {OffscreenCanvas|null} */
  #heat = null;
  /** @type {{left: number, top: number, width: number, height: number}|null} */
  #box = null;

  connectedCallback() {
    if (this.canvas) return;
    this.canvas = /** @type {HTMLCanvasElement} */ (el("canvas", { role: "img" }));
    this.notice = el("p", { class: "notice" });
    this.near = el("button", { type: "button", class: "tool", "aria-pressed": "true" }, t("zoom"));
    this.hot = el("button", { type: "button", class: "tool second", "aria-pressed": "true" }, t("heat"));
    this.near.addEventListener("click", () => this.flip("near"));
    this.hot.addEventListener("click", () => this.flip("hot"));
    this.append(this.canvas, this.notice, this.near, this.hot);
    new ResizeObserver(() => this.#paint()).observe(this.canvas);
  }

  /**
   * Show a waiting part, null for none. What is not kept, or not known to be, is not asked for.
   * @param {{id: string, part_id: string, picture: boolean|null, heat: boolean|null}|null} part
   */
  async show(part) {
    const wanted = part ? `${part.picture} ${part.heat} ${part.id}` : "";
    if (wanted === this.#wanted) return;
    this.#wanted = wanted;
    this.#forget();
    if (!part || part.picture === null) return;
    const base = `/img/escalations/${encodeURIComponent(part.id)}`;
    const [seen, warm] = await Promise.all([
      part.picture ? picture(`${base}.jpg`) : null,
      part.picture && part.heat ? picture(`${base}/heat.png`) : null,
    ]);
    if (wanted !== this.#wanted) {
      seen?.bitmap.close();
      warm?.bitmap.close();
      return;
    }
    this.#bitmap = seen?.bitmap ?? null;
    this.#heat = warm ? heatOf(warm.bitmap) : null;
    warm?.bitmap.close();
    const [left, top, width, height] = (seen?.box ?? "").split(",").map(Number);
    this.#box = seen?.box ? { left, top, width, height } : null;
    this.dataset.shown = seen ? part.id : "";
    this.toggleAttribute("data-none", !seen);
    this.notice?.replaceChildren(...(seen ? [] : [t("evidence.none")]));
    this.canvas?.setAttribute("aria-label", seen ? t("evidence.of", { part: part.part_id }) : t("evidence.none"));
    this.#paint();
  }

  /** @param {"near"|"hot"} what */
  flip(what) {
    if (what === "near") this.#near = !this.#near;
    else this.#hot = !this.#hot;
    this.near?.setAttribute("aria-pressed", String(this.#near));
    this.hot?.setAttribute("aria-pressed", String(this.#hot));
    this.#paint();
  }

  #forget() {
    this.#bitmap?.close();
    this.#bitmap = this.#heat = this.#box = null;
    delete this.dataset.shown;
    this.removeAttribute("data-none");
    this.notice?.replaceChildren();
    if (this.canvas) wipe(this.canvas);
  }

  #paint() {
    if (!this.canvas || !this.#bitmap) return;
    paint(this.canvas, this.#bitmap, this.#hot ? this.#heat : null, this.#near ? this.#box : null);
  }
}
