/** The score between its limits: pass, ask, reject. All places come computed. */
import { DASH, el, svg } from "./dom.js";
import { t } from "./words.js";

/** @param {number} share */
const percent = (share) => `${share * 100}%`;

/**
 * @param {string} kind
 * @param {number} from
 * @param {number} to
 */
function zone(kind, from, to) {
  return svg("rect", { class: `zone ${kind}`, x: percent(from), y: 0, width: percent(Math.max(0, to - from)), height: "100%" });
}

/**
 * @param {HTMLElement} place
 * @param {any} scale null is "not known"
 */
export function drawScale(place, scale) {
  const score = el("p", { class: "score" }, el("span", {}, t("score")), el("b", {}, scale?.score ?? DASH));
  if (!scale) {
    place.replaceChildren(score);
    return;
  }
  if (scale.beyond) score.append(el("i", {}, t("scale.beyond")));
  const accept = scale.accept?.at ?? 0;
  const reject = scale.reject?.at ?? 1;
  const bar = svg("svg", { class: "bar", "aria-hidden": "true" });
  if (scale.accept) bar.append(zone("pass", 0, accept));
  bar.append(zone("ask", accept, reject));
  if (scale.reject) bar.append(zone("reject", reject, 1));
  for (const limit of [scale.accept, scale.reject]) {
    if (limit) bar.append(svg("line", { class: "limit", x1: percent(limit.at), x2: percent(limit.at), y1: 0, y2: "100%" }));
  }
  if (scale.at !== null) {
    const marker = svg("svg", { x: percent(scale.at), y: 0, width: 1, height: "100%", overflow: "visible" });
    marker.append(svg("line", { class: "needle-edge", x1: 0, x2: 0, y1: 0, y2: "100%" }));
    marker.append(svg("line", { class: "needle", x1: 0, x2: 0, y1: 0, y2: "100%" }));
    bar.append(marker);
  }
  const words = el("p", { class: "limits" });
  words.append(el("span", {}, scale.accept ? t("scale.accept", { limit: scale.accept.text }) : t("scale.accept.none")));
  words.append(el("span", {}, scale.reject ? t("scale.reject", { limit: scale.reject.text }) : t("scale.reject.none")));
  place.replaceChildren(score, bar, words);
}
