/** Trends: the yield against its baseline, what was rejected, who was asked. All places come computed. */
import { DASH, el, svg } from "./dom.js";
import { link } from "./link.js";
import { guard } from "./rights.js";
import { send } from "./send.js";
import { ask, table } from "./table.js";
import { t } from "./words.js";

const SPANS = ["shift", "day", "week"];
const HEADS = ["from", "parts", "accepted", "rejected", "asked", "blind", "faults", "agreed", "compared"];
const AGAIN_MS = 30_000;

/** @param {any[]} points @param {string} name */
const path = (points, name) => points.filter((one) => one[name] !== null).map((one) => `${one.x * 1000},${300 - one[name] * 300}`).join(" ");

/** @param {any} told */
function chart(told) {
  const { points, centre, floor } = told.yield;
  const picture = svg("svg", { class: "p-chart", viewBox: "0 -8 1000 316", preserveAspectRatio: "none", role: "img" });
  picture.setAttribute("aria-label", t("trends.spoken", { yield: told.figures.yield ?? DASH, floor, out: points.filter((/** @type {any} */ one) => one.out).length }));
  for (const name of ["low", "high"]) picture.append(svg("polyline", { class: "limit", points: path(points, name) }));
  if (centre !== null) picture.append(svg("line", { class: "centre", x1: 0, x2: 1000, y1: 300 - centre * 300, y2: 300 - centre * 300 }));
  for (const mark of told.marks) picture.append(svg("line", { class: "mark", x1: mark.x * 1000, x2: mark.x * 1000, y1: 0, y2: 300 }));
  picture.append(svg("polyline", { class: "yield", points: path(points, "y") }));
  for (const one of points) {
    if (one.y === null) continue;
    const [x, y] = [one.x * 1000, 300 - one.y * 300];
    // Outside is another shape, and not only another colour.
    picture.append(one.out ? svg("rect", { class: "out", x: x - 6, y: y - 8, width: 12, height: 16 }) : svg("circle", { cx: x, cy: y, r: 4 }));
  }
  const times = [points[0], points[points.length >> 1], points[points.length - 1]].map((one) => el("span", {}, one.at));
  return el("figure", {}, el("figcaption", {}, `${t("trends.yield")} ${floor} – 100 %`), picture, el("p", { class: "axis" }, ...times));
}

/** @param {any[]} bars */
function pareto(bars) {
  const list = el("ol", { class: "pareto" });
  for (const one of bars) {
    const bar = svg("svg", { "aria-hidden": "true" });
    bar.append(svg("rect", { width: `${one.share * 100}%`, height: "100%" }), svg("line", { x1: `${one.sum * 100}%`, x2: `${one.sum * 100}%`, y1: 0, y2: "100%" }));
    list.append(el("li", {}, el("b", {}, one.name), bar, el("span", {}, `${one.count} · ${Math.round(one.sum * 100)} %`)));
  }
  return bars.length ? list : el("p", {}, t("trends.no_classes"));
}

export class QcTrends extends HTMLElement {
  span = "day";

  connectedCallback() {
    if (this.firstChild) return;
    this.keys = el("div", { class: "tools" });
    for (const span of SPANS) {
      const key = el("button", { type: "button", class: "button", "data-span": span }, t(`trends.${span}`));
      key.addEventListener("click", () => this.#show(span));
      this.keys.append(key);
    }
    this.freeze = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button" }, t("trends.freeze")));
    this.freeze.addEventListener("click", async () => {
      const { ok, words } = await send("/api/v1/trends/baseline", { span: this.span });
      if (!ok) this.told?.replaceChildren(words || DASH);
      if (ok) this.#show(this.span);
    });
    this.told = el("p", { role: "status" });
    this.place = el("div", { class: "trends" }, DASH);
    this.append(this.keys, this.told, this.place);
    link.addEventListener("state", () => this.freeze && guard(this.freeze, "learn"));
    link.addEventListener("lost", () => this.place?.replaceChildren(DASH));
    setInterval(() => document.hidden || this.#show(this.span), AGAIN_MS);
    this.#show(this.span);
  }

  /** @param {string} span */
  async #show(span) {
    this.span = span;
    for (const key of this.keys?.children ?? []) key.setAttribute("aria-pressed", String(key.getAttribute("data-span") === span));
    const told = await ask(`/api/v1/trends/${span}`);
    if (span !== this.span) return;
    if (!told) {
      this.place?.replaceChildren(DASH);
      return;
    }
    const figures = el("dl", { class: "figures" });
    for (const name of ["parts", "yield", "rejected", "asked", "agreed", "decision"]) figures.append(el("div", {}, el("dt", {}, t(`trends.${name}`)), el("dd", {}, String(told.figures[name] ?? DASH))));
    const marks = el("ul", { class: "marks" }, ...told.marks.map((/** @type {any} */ one) => el("li", {}, one.words)));
    const csv = el("a", { class: "button", href: `/api/v1/trends/${span}/csv`, download: `trends-${span}.csv` }, "CSV");
    this.told?.replaceChildren(told.baseline ?? t("trends.no_baseline"));
    this.place?.replaceChildren(figures, chart(told), marks, el("h2", {}, t("trends.classes")), pareto(told.pareto), el("p", { class: "tools" }, this.freeze ?? "", csv), table(HEADS.map((name) => t(`trends.${name}`)), told.rows.map((/** @type {any[]} */ row) => [row[0].slice(0, 16).replace("T", " "), ...row.slice(1)])));
  }
}
