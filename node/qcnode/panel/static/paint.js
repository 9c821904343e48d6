/** The one painter of pictures with heat: live, on review, wherever a part is shown. */

/** Ramp of the heat, rising in lightness: [share, red, green, blue, opacity 0..255]. */
const RAMP = [
  [0.0, 40, 10, 80, 0],
  [0.35, 80, 20, 120, 0],
  [0.6, 190, 50, 90, 110],
  [0.8, 245, 125, 40, 165],
  [1.0, 255, 235, 150, 200],
];

/** @type {Uint8ClampedArray|null} */
let table = null;

/** @returns {Uint8ClampedArray} red, green, blue, opacity for each of 256 values */
export function ramp() {
  if (table) return table;
  table = new Uint8ClampedArray(256 * 4);
  for (let value = 0; value < 256; value += 1) {
    const share = value / 255;
    const next = Math.max(1, RAMP.findIndex(([at]) => at >= share));
    const [from, to] = [RAMP[next - 1], RAMP[next]];
    const within = (share - from[0]) / (to[0] - from[0]);
    for (let channel = 0; channel < 4; channel += 1) {
      table[value * 4 + channel] = from[channel + 1] + within * (to[channel + 1] - from[channel + 1]);
    }
  }
  return table;
}

/**
 * @param {Uint8Array|Uint8ClampedArray} grey
 * @param {number} width
 * @param {number} height
 * @returns {OffscreenCanvas}
 */
export function heatPicture(grey, width, height) {
  const colours = ramp();
  const image = new ImageData(width, height);
  for (let index = 0; index < grey.length; index += 1) {
    const from = grey[index] * 4;
    for (let channel = 0; channel < 4; channel += 1) {
      image.data[index * 4 + channel] = colours[from + channel];
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}

/**
 * Where a part of a picture comes to lie on the canvas, whole and undistorted.
 * @param {{left: number, top: number, width: number, height: number}} crop
 * @param {number} width
 * @param {number} height
 */
export function fit(crop, width, height) {
  const zoom = Math.min(width / crop.width, height / crop.height);
  return {
    left: Math.round((width - crop.width * zoom) / 2),
    top: Math.round((height - crop.height * zoom) / 2),
    width: Math.round(crop.width * zoom),
    height: Math.round(crop.height * zoom),
  };
}

/**
 * Paint picture and heat in one go.
 * @param {HTMLCanvasElement} canvas
 * @param {CanvasImageSource & {width: number, height: number}} picture
 * @param {OffscreenCanvas|null} heat over the whole picture, at its own resolution
 * @param {{left: number, top: number, width: number, height: number}|null} crop
 */
export function paint(canvas, picture, heat, crop) {
  const dots = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(canvas.clientWidth * dots));
  const height = Math.max(1, Math.round(canvas.clientHeight * dots));
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  if (!context) return;
  const from = crop ?? { left: 0, top: 0, width: picture.width, height: picture.height };
  const to = fit(from, width, height);
  context.clearRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, from.left, from.top, from.width, from.height, to.left, to.top, to.width, to.height);
  if (!heat) return;
  const across = heat.width / picture.width;
  const down = heat.height / picture.height;
  context.drawImage(
    heat,
    from.left * across, from.top * down, from.width * across, from.height * down,
    to.left, to.top, to.width, to.height,
  );
}

/** @param {HTMLCanvasElement} canvas */
export function wipe(canvas) {
  canvas.getContext("2d")?.clearRect(0, 0, canvas.width, canvas.height);
}
