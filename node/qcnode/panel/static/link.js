/**
 * The one connection of this tab: state as text, the newest part as one binary message.
 *
 * It says `lost` when nothing was heard for SILENCE_MS and comes back by itself. What is
 * shown hangs on it: nothing that was heard before a loss is live after it.
 */

import { unpack } from "./message.js";

const SILENCE_MS = 2500;
const WATCH_MS = 250;
const WAIT_MIN_MS = 500;
const WAIT_MAX_MS = 8000;
const TOUCHED_MS = 10_000;

class Link extends EventTarget {
  live = false;
  /** @type {Record<string, any>} */
  sections = {};
  /** @type {WebSocket|null} */
  #socket = null;
  #heard = 0;
  #wait = WAIT_MIN_MS;
  #painted = 0;
  #touched = -TOUCHED_MS;

  start() {
    this.#connect();
    setInterval(() => this.#watch(), WATCH_MS);
    document.addEventListener("visibilitychange", () => this.#tellShown());
    for (const kind of ["pointerdown", "keydown"]) document.addEventListener(kind, () => this.#tellTouched(), true);
  }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#heard = performance.now();
    this.#painted = 0;
    this.sections = {};
    socket.onopen = () => this.#tellShown();
    socket.onmessage = (event) => this.#hear(socket, event.data);
    socket.onclose = () => this.#drop(socket);
  }

  /** @param {WebSocket} socket */
  #drop(socket) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    socket.onclose = socket.onmessage = socket.onopen = null;
    socket.close();
    setTimeout(() => this.#connect(), this.#wait);
    this.#wait = Math.min(this.#wait * 2, WAIT_MAX_MS);
    this.#lose();
  }

  #lose() {
    document.documentElement.dataset.link = "lost";
    const was = this.live;
    const last = this.sections.pulse?.now ?? null;
    this.live = false;
    if (was) this.dispatchEvent(new CustomEvent("lost", { detail: last }));
  }

  #watch() {
    const silent = performance.now() - this.#heard > SILENCE_MS;
    if (silent && this.#socket) this.#drop(this.#socket);
  }

  #tellShown() {
    this.#tell(this.#socket, { type: "shown", visible: !document.hidden });
  }

  /** Say now and then that somebody is there: without it the node signs them out. */
  #tellTouched() {
    const now = performance.now();
    if (now - this.#touched < TOUCHED_MS) return;
    this.#touched = now;
    this.#tell(this.#socket, { type: "touched" });
  }

  /**
   * @param {WebSocket|null} socket
   * @param {object} message
   */
  #tell(socket, message) {
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  /**
   * @param {WebSocket} socket
   * @param {string|ArrayBuffer} data
   */
  #hear(socket, data) {
    this.#heard = performance.now();
    if (typeof data !== "string") {
      this.#show(socket, data);
      return;
    }
    const news = JSON.parse(data).sections;
    Object.assign(this.sections, news);
    if (!this.live && "pulse" in this.sections) {
      this.live = true;
      this.#wait = WAIT_MIN_MS;
      document.documentElement.dataset.link = "live";
    }
    this.dispatchEvent(new CustomEvent("state", { detail: news }));
  }

  /**
   * @param {WebSocket} socket
   * @param {ArrayBuffer} buffer
   */
  async #show(socket, buffer) {
    const { header, heat, jpeg } = unpack(buffer);
    let bitmap = null;
    if (jpeg.byteLength > 0) {
      const blob = new Blob([jpeg], { type: "image/jpeg" });
      bitmap = await createImageBitmap(blob).catch(() => null);
    }
    const current = socket === this.#socket && header.seq > this.#painted;
    if (current) {
      this.#painted = header.seq;
      // Everyone who shows the part does so within this one call, hence in one frame.
      this.dispatchEvent(new CustomEvent("part", { detail: { header, heat, bitmap } }));
    } else {
      bitmap?.close();
    }
    this.#tell(socket, { type: "painted", seq: header.seq });
  }
}

export const link = new Link();
