/** A part as it travels: picture, heat and words in one message, so that none is on another. */

/**
 * @typedef {object} Part
 * @property {Record<string, any>} header
 * @property {Uint8Array} heat rows x columns, as the header says
 * @property {ImageBitmap|null} bitmap
 */

/**
 * Take one message apart: u32 header length, u32 heat length, header, heat, JPEG.
 * @param {ArrayBuffer} buffer
 */
export function unpack(buffer) {
  const view = new DataView(buffer);
  const head = view.getUint32(0, true);
  const warm = view.getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, head)));
  const heat = new Uint8Array(buffer, 8 + head, warm);
  return { header, heat, jpeg: new Uint8Array(buffer, 8 + head + warm) };
}
