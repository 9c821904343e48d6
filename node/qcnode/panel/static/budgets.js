/** A budget as a bar: spent, held behind it, and where the window is likely to end. */
import { svg } from "./dom.js";

/** @param {number} share */
const percent = (share) => `${share * 100}%`;

/**
 * The limit is the right end.
 * @param {any} shares
 */
export function bar(shares) {
  const picture = svg("svg", { class: "budget-bar", "aria-hidden": "true" });
  picture.append(
    svg("rect", { class: "held", width: percent(shares.held), height: "100%" }),
    svg("rect", { class: "spent", width: percent(shares.spent), height: "100%" }),
  );
  if (shares.expected !== null) {
    const at = percent(shares.expected);
    picture.append(
      svg("line", { class: "likely", x1: percent(shares.low), x2: percent(shares.high), y1: "50%", y2: "50%" }),
      svg("line", { class: "expected", x1: at, x2: at, y1: 0, y2: "100%" }),
    );
  }
  return picture;
}
