/** Sends one press of a decision button, again and again if need be, counted once. */
import { t } from "./words.js";

const TRIES = 4;
const ANSWER_MAX_MS = 4000;
const AGAIN_MS = 700;

/** @returns {string} a key no other press has */
function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {string} id of the escalation
 * @param {string} finding good, defective or unsure
 * @param {string|null} defectClass
 * @returns {Promise<{ok: boolean, words: string, answer: any}>}
 */
export async function rule(id, finding, defectClass) {
  const headers = { "content-type": "application/json", "idempotency-key": newKey() };
  const url = `/api/v1/escalations/${encodeURIComponent(id)}/ruling`;
  for (let left = TRIES; left > 0; left -= 1) {
    try {
      const signal = AbortSignal.timeout(ANSWER_MAX_MS);
      const answer = await fetch(url, { method: "POST", headers, body: JSON.stringify({ finding, defect_class: defectClass }), signal });
      const said = await answer.json();
      if (answer.ok) return { ok: true, words: said.words, answer: said };
      if (answer.status < 500) return { ok: false, words: String(said.detail), answer: null };
    } catch {
      // No answer: the same press is sent again under the same key.
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  return { ok: false, words: t("ruled.unconfirmed"), answer: null };
}
