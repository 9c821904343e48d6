/**
 * The shapes that say a state without colour: every kind has an outline of its own.
 */
import { svg } from "./dom.js";
import { t } from "./words.js";

/** @type {Record<string, [string, Record<string, string|number>][]>} */
const DRAWN = {
  ok: [["circle", { cx: 12, cy: 12, r: 8.5, class: "open" }]],
  not_ok: [
    ["rect", { x: 2.5, y: 2.5, width: 19, height: 19, class: "solid" }],
    ["path", { d: "M7.5 7.5l9 9M16.5 7.5l-9 9", class: "cut" }],
  ],
  not_decidable: [
    ["path", { d: "M12 1.5L22.5 12 12 22.5 1.5 12z", class: "open" }],
    ["path", { d: "M9.4 9.6a2.7 2.7 0 1 1 4 2.3c-1 .6-1.4 1.1-1.4 2.1M12 16.6v.6", class: "line" }],
  ],
  undefined: [
    ["circle", { cx: 12, cy: 12, r: 9, class: "dashed" }],
    ["path", { d: "M8 12h8", class: "line" }],
  ],
  fault: [["path", { d: "M4 4l16 16M20 4L4 20", class: "line" }]],
  well: [["circle", { cx: 12, cy: 12, r: 6.5, class: "open" }]],
  unwell: [
    ["path", { d: "M12 2.5L22.5 21.5h-21z", class: "solid" }],
    ["path", { d: "M12 9v6M12 17.6v.8", class: "cut" }],
  ],
  silent: [["circle", { cx: 12, cy: 12, r: 6.5, class: "dashed" }]],
  good: [["path", { d: "M4 12.5l5.5 6L20 6", class: "line" }]],
  defective: [["path", { d: "M5 5l14 14M19 5L5 19", class: "line" }]],
  undo: [["path", { d: "M9 4L4 9l5 5M4.5 9H14a5.5 5.5 0 0 1 0 11H8", class: "line" }]],
  unsure: [["path", { d: "M8 8.6a4 4 0 1 1 6 3.4c-1.5.9-2 1.7-2 3.2M12 19v.9", class: "line" }]],
};

/**
 * @param {string} kind one of the states above
 * @returns {SVGElement} a drawing without words: the words stand beside it
 */
export function shape(kind) {
  const parts = (DRAWN[kind] ?? DRAWN.silent).map(([tag, attributes]) => svg(tag, attributes));
  const known = kind in DRAWN ? kind : "silent";
  return svg("svg", { viewBox: "0 0 24 24", class: `shape ${known}`, "aria-hidden": "true" }, ...parts);
}

/** Outlines of the priorities: the more corners, the less urgent. */
const RANKS = ["", "M12 1.5L23 21.5H1z", "M2.5 2.5h19v19h-19z", "M12 1.5L22.5 12 12 22.5 1.5 12z"];

/**
 * @param {number} rank 1 to 3
 * @returns {SVGElement} the number in a shape of its own, with its words for those who hear it
 */
export function priority(rank) {
  const number = svg("text", { x: 12, y: rank === 1 ? 19.5 : 17, "text-anchor": "middle", "font-size": 14 }, String(rank));
  const outline = svg("path", { d: RANKS[rank] ?? RANKS[3], class: "solid" });
  return svg("svg", { viewBox: "0 0 24 24", class: `shape rank p${rank}`, role: "img", "aria-label": t("priority", { rank }) }, outline, number);
}
