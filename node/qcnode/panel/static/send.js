/** Sends what a person does to the node and returns what it says, in words. */

const ANSWER_MAX_MS = 6000;

/**
 * @param {string} path
 * @param {object} [said]
 * @param {string} [method]
 * @returns {Promise<{ok: boolean, words: string, answer: any}>}
 */
export async function send(path, said = {}, method = "POST") {
  try {
    const answer = await fetch(path, {
      method,
      headers: { "content-type": "application/json" },
      body: JSON.stringify(said),
      signal: AbortSignal.timeout(ANSWER_MAX_MS),
    });
    const told = answer.status === 204 ? {} : await answer.json();
    const detail = typeof told.detail === "string" ? told.detail : JSON.stringify(told.detail ?? "");
    return { ok: answer.ok, words: answer.ok ? "" : detail, answer: told };
  } catch {
    return { ok: false, words: "", answer: null };
  }
}
