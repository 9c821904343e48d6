/** Tables of what the node tells on request: rows that are asked for, and not streamed. */
import { DASH, el } from "./dom.js";

/**
 * @param {string[]} heads
 * @param {(string|number|null|Node)[][]} rows
 * @returns {HTMLElement}
 */
export function table(heads, rows) {
  const head = el("tr", {}, ...heads.map((words) => el("th", { scope: "col" }, words)));
  const body = rows.map((cells) => el("tr", {}, ...cells.map((cell) => (cell instanceof Node ? el("td", {}, cell) : el("td", {}, String(cell ?? DASH))))));
  return el("div", { class: "table", tabindex: "0" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}

/**
 * @param {string} path
 * @returns {Promise<any>} null when it cannot be had
 */
export async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(6000) }).catch(() => null);
  return answer?.ok ? answer.json() : null;
}
