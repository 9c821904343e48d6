/** The picture of a waiting part: where the evidence is, or whole, with heat or without. */
import { el } from "./dom.js";
import { heatPicture, paint, wipe } from "./paint.js";

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
  #id = "";
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
    this.near = el("button", { type: "button", class: "tool", "aria-pressed": "true" }, "Zoom");
    this.hot = el("button", { type: "button", class: "tool second", "aria-pressed": "true" }, "Heat");
    this.near.addEventListener("click", () => this.flip("near"));
    this.hot.addEventListener("click", () => this.flip("hot"));
    this.append(this.canvas, this.notice, this.near, this.hot);
    new ResizeObserver(() => this.#paint()).observe(this.canvas);
  }

  /**
   * Show the part that waits under this id; nothing for the empty id.
   * @param {string} id
   */
  async show(id) {
    if (id === this.#id) return;
    this.#id = id;
    this.#forget();
    if (!id) return;
    const base = `/img/escalations/${encodeURIComponent(id)}`;
    const [seen, warm] = await Promise.all([picture(`${base}.jpg`), picture(`${base}/heat.png`)]);
    if (id !== this.#id) {
      seen?.bitmap.close();
      warm?.bitmap.close();
      return;
    }
    this.#bitmap = seen?.bitmap ?? null;
    this.#heat = warm ? heatOf(warm.bitmap) : null;
    warm?.bitmap.close();
    const [left, top, width, height] = (seen?.box ?? "").split(",").map(Number);
    this.#box = seen?.box ? { left, top, width, height } : null;
    this.dataset.shown = seen ? id : "";
    this.notice?.replaceChildren(...(seen ? [] : ["No picture of this part is kept"]));
    this.canvas?.setAttribute("aria-label", `Picture of ${id}`);
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
    this.notice?.replaceChildren();
    if (this.canvas) wipe(this.canvas);
  }

  #paint() {
    if (!this.canvas || !this.#bitmap) return;
    paint(this.canvas, this.#bitmap, this.#hot ? this.#heat : null, this.#near ? this.#box : null);
  }
}
