/** Whose turn it is on the card: which of the waiting parts a person is shown next. */
import { t } from "./words.js";

/**
 * @typedef {object} Waiting
 * @property {number} total
 * @property {string} oldest
 * @property {any[]} parts
 * @property {string[]} more
 * @property {any[]} deciding
 */

export class Turns {
  /** @type {Waiting|null} */
  waiting = null;
  /** Who stands here, as leases name them. */
  name = "";
  /** Whose screen this is, as decisions name it. */
  tag = "";
  /** @type {Set<string>} parts this person was not sure about; they come round again */
  later = new Set();
  /** @type {Set<string>} parts decided here, until the list no longer names them */
  done = new Set();

  /** @param {Waiting|null} waiting */
  hear(waiting) {
    this.waiting = waiting;
    for (const id of this.done) if (!this.waits(id)) this.done.delete(id);
  }

  /** @param {string} id */
  waits(id) {
    const { parts = [], more = [] } = this.waiting ?? {};
    return more.includes(id) || parts.some((one) => one.id === id);
  }

  /** @returns {any[]} the parts that are shown and not decided here */
  open() {
    return (this.waiting?.parts ?? []).filter((one) => !this.done.has(one.id));
  }

  /** @returns {any[]} those of them nobody else has before them */
  free() {
    return this.open().filter((one) => one.ready && !this.taken(one));
  }

  /**
   * @param {any} part
   * @returns {boolean} whether somebody else has it before them
   */
  taken(part) {
    return Boolean(part.lease && part.lease.who !== this.name);
  }

  /** @returns {string} the part that is next, an empty text for none */
  next() {
    const free = this.free();
    const fresh = free.find((one) => !this.later.has(one.id));
    if (!fresh) this.later.clear();
    return (fresh ?? free[0])?.id ?? "";
  }

  /**
   * @param {string} id
   * @param {number} step 1 for the part behind this one, -1 for the one before
   * @returns {string}
   */
  beside(id, step) {
    const ids = this.free().map((one) => one.id);
    if (ids.length < 2) return id;
    return ids[(ids.indexOf(id) + step + ids.length) % ids.length];
  }

  /** @returns {string} how many wait, and the oldest of them */
  count() {
    const { total, oldest } = this.waiting ?? {};
    return total && oldest ? t("waiting.count", { count: total, age: oldest }) : "";
  }

  /** @returns {string} why there is no part on the card */
  calm() {
    const open = this.open();
    if (!open.length) return t("waiting.none");
    const other = open.find((one) => this.taken(one));
    return other ? t("waiting.with", { who: other.lease.who }) : t("agent.asked");
  }

  /** @returns {any} the last decision of this screen that can still be taken back */
  undoable() {
    return (this.waiting?.deciding ?? []).filter((one) => one.tag === this.tag).at(-1) ?? null;
  }
}
