/** What was spent: measured, held and unpriced side by side, never added up; and the budgets. */
import { DASH, el, svg } from "./dom.js";
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

/** @param {number} share */
const percent = (share) => `${share * 100}%`;

/**
 * Spent, held behind it, and where the window is likely to end; the limit is the right end.
 * @param {any} shares
 */
function bar(shares) {
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

/** @param {any} budget */
function row(budget) {
  const name = el("b", {}, budget.name);
  const head = el("p", { class: "head" }, el("span", {}, name, ` ${budget.window}`), el("span", { "data-value": "used" }, budget.used));
  const fine = el("p", { class: "fine" });
  const said = [budget.forecast, budget.used_up && `used up about ${budget.used_up}`, budget.held && `${budget.held} held`];
  const words = said.filter(Boolean).join(" \u00b7 ") || "nothing counted yet";
  if (budget.alarm) fine.append(el("b", { class: budget.bad ? "bad" : "warn" }, budget.alarm), " \u00b7 ");
  fine.append(words);
  const whose = budget.scope ? { title: `for ${budget.scope}` } : {};
  return el("li", { "data-budget": budget.name, ...whose }, head, bar(budget.bar), fine);
}

export class QcMoney extends QcElement {
  static section = "money";

  /** @param {any} money */
  render(money) {
    const title = el("h2", {}, "Tokens and cost");
    if (money?.scripted) title.append(el("span", { class: "chip" }, `${money.scripted}: nobody is charged`));
    const known = money?.known ? money : null;
    const table = el("table", {}, el("tr", {}, ...["", "measured", "held", "unpriced"].map((head) => el("th", {}, head))));
    const rows = known?.rows.length ? known.rows : [{ currency: DASH, measured: DASH, held: DASH }];
    for (const row of rows) {
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
    );
    const budgets = el("ul", { class: "budgets" });
    for (const budget of known?.budgets.shown ?? []) budgets.append(row(budget));
    if (known?.budgets.more) budgets.append(el("li", { class: "fine" }, `and ${known.budgets.more} more`));
    if (known && !known.budgets.shown.length) budgets.append(el("li", { class: "fine" }, "No budget: nothing is limited."));
    this.replaceChildren(title, table, budgets, list);
  }
}
