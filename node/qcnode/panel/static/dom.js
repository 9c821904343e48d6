/** Small helpers to build elements. Data goes in as text or attributes, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * @param {string} tag
 * @param {Record<string, string|number>} [attributes]
 * @param {...(Node|string)} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

/** What stands where a value is not known. */
export const DASH = "\u2014";

/**
 * Write text into an element, a dash for what is not known; touches the page only on change.
 * @param {Element} element
 * @param {string|number|null|undefined} value
 */
export function say(element, value) {
  const text = value === null || value === undefined || value === "" ? DASH : String(value);
  if (element.textContent !== text) element.textContent = text;
}
