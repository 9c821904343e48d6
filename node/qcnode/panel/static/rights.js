/** Buttons that are not for everybody: they stay where they are and say whom they are for. */
import { link } from "./link.js";
import { t } from "./words.js";

/** @param {string} right */
export function may(right) {
  return Boolean(link.live && link.sections.who?.rights.includes(right));
}

/**
 * @param {HTMLButtonElement} button
 * @param {string} right
 * @param {boolean} [possible] whether it makes sense just now
 */
export function guard(button, right, possible = true) {
  const allowed = may(right);
  button.disabled = !allowed || !possible;
  button.toggleAttribute("data-denied", link.live && !allowed);
  button.title = link.live && !allowed ? t(`needs.${right}`) : "";
}
