/** What was spent: measured, held and unpriced side by side, never added up; and the budgets. */
import { bar } from "./budgets.js";
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { t } from "./words.js";

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

/** @param {any} budget */
function row(budget) {
  const name = el("b", {}, budget.name);
  const head = el("p", { class: "head" }, el("span", {}, name, ` ${budget.window}`), el("span", { "data-value": "used" }, budget.used));
  const fine = el("p", { class: "fine" });
  const said = [budget.forecast, budget.used_up && t("budget.used_up", { at: budget.used_up }), budget.held && t("budget.held", { held: budget.held })];
  const words = said.filter(Boolean).join(" \u00b7 ") || t("budget.nothing");
  if (budget.alarm) fine.append(el("b", { class: budget.bad ? "bad" : "warn" }, budget.alarm), " \u00b7 ");
  fine.append(words);
  const whose = budget.scope ? { title: t("budget.for", { scope: budget.scope }) } : {};
  return el("li", { "data-budget": budget.name, ...whose }, head, bar(budget.bar), fine);
}

export class QcMoney extends QcElement {
  static section = "money";

  /** @param {any} money */
  render(money) {
    const title = el("h2", {}, t("money.title"));
    if (money?.scripted) title.append(el("span", { class: "chip" }, t("money.scripted", { scripted: money.scripted })));
    const known = money?.known ? money : null;
    const table = el("table", {}, el("tr", {}, el("td", {}), ...["measured", "held", "unpriced"].map((head) => el("th", {}, t(`money.${head}`)))));
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
      fact(t("money.input_tokens"), known?.input_tokens ?? null, "input_tokens"),
      fact(t("money.output_tokens"), known?.output_tokens ?? null, "output_tokens"),
      fact(t("money.attempts"), known?.attempts ?? null, "attempts"),
      fact(t("money.open"), known?.open ?? null, "open"),
      fact(t("money.indeterminate"), known?.indeterminate ?? null, "indeterminate", known?.indeterminate > 0),
      fact(t("money.unconfirmed"), known?.unconfirmed_words ?? null, "unconfirmed"),
    );
    const budgets = el("ul", { class: "budgets" });
    for (const budget of known?.budgets.shown ?? []) budgets.append(row(budget));
    if (known?.budgets.more) budgets.append(el("li", { class: "fine" }, t("and_more", { count: known.budgets.more })));
    if (known && !known.budgets.shown.length) budgets.append(el("li", { class: "fine" }, t("budget.none")));
    this.replaceChildren(title, table, budgets, list);
  }
}
