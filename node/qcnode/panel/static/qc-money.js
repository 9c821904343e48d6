/** What was spent: measured, held and unpriced side by side, never added up. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";

/**
 * @param {string} label
 * @param {string|number|null} value
 * @param {string} [name]
 * @param {boolean} [abnormal]
 */
function fact(label, value, name = "", abnormal = false) {
  const shown = el("dd", { "data-value": name }, value === null ? DASH : String(value));
  if (abnormal) shown.classList.add("warn");
  return el("div", {}, el("dt", {}, label), shown);
}

export class QcMoney extends QcElement {
  static section = "money";

  /** @param {any} money */
  render(money) {
    const title = el("h2", {}, "Tokens and cost");
    if (money?.scripted) title.append(el("span", { class: "chip" }, `${money.scripted}: nobody is charged`));
    const known = money?.known ? money : null;
    const table = el("table", {}, el("tr", {}, ...["", "measured", "held", "unpriced"].map((head) => el("th", {}, head))));
    for (const row of known?.rows ?? [{ currency: DASH, measured: DASH, held: DASH }]) {
      table.append(
        el(
          "tr",
          {},
          el("th", { scope: "row" }, row.currency),
          el("td", { "data-value": "measured", title: `${row.measured_pico ?? DASH} pico` }, row.measured),
          el("td", { "data-value": "held", title: `${row.held_pico ?? DASH} pico` }, row.held),
          el("td", known?.unpriced ? { class: "warn" } : {}, known?.unpriced_words ?? DASH),
        ),
      );
    }
    const list = el(
      "dl",
      { class: "facts two" },
      fact("Tokens in", known?.input_tokens ?? null, "input_tokens"),
      fact("Tokens out", known?.output_tokens ?? null, "output_tokens"),
      fact("Attempts", known?.attempts ?? null, "attempts"),
      fact("Open", known?.open ?? null, "open"),
      fact("Indeterminate", known?.indeterminate ?? null, "indeterminate", known?.indeterminate > 0),
      fact("Unconfirmed", known?.unconfirmed_words ?? null, "unconfirmed"),
      fact("Budget left", known?.left ?? null, "left", known?.spent_out),
    );
    this.replaceChildren(title, table, list);
  }
}
