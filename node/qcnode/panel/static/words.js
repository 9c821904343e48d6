/** The sentences of this screen's language, as the page brought them along. */

/** @type {Record<string, string>} */
const sentences = JSON.parse(document.getElementById("words")?.textContent ?? "{}");

/**
 * @param {string} key
 * @param {Record<string, string|number>} [values]
 * @returns {string}
 */
export function t(key, values = {}) {
  const sentence = sentences[key] ?? key;
  return sentence.replaceAll(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
