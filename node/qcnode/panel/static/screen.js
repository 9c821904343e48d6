/** The size of things on this screen: a millimetre in pixels, once its diagonal is known. */

const MM_PER_INCH = 25.4;

/** @param {HTMLElement} root */
export function measure(root) {
  const inch = Number(root.dataset.inch);
  if (!inch) return;
  const mm = Math.hypot(screen.width, screen.height) / (inch * MM_PER_INCH);
  root.style.setProperty("--mm", `${mm}px`);
}
