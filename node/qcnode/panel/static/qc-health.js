/** How the parts of the node are doing, in their own words. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { shape } from "./shapes.js";
import { t } from "./words.js";

export class QcHealth extends QcElement {
  static section = "health";

  /** @param {any} health */
  render(health) {
    const list = el("ul", {});
    for (const row of health?.rows ?? []) {
      const said = [row.note, row.words].filter(Boolean).join(": ");
      const words = el("span", { class: "words", title: said }, row.words);
      if (row.note) words.prepend(el("span", { class: "chip" }, row.note), " ");
      list.append(
        el(
          "li",
          {
            class: `${row.state}${row.needed ? " needed" : ""}`,
            "data-component": row.component,
            "aria-label": `${row.name}, ${t(`state.${row.state}`)}: ${said}`,
          },
          shape(row.state),
          el("b", {}, row.name),
          words,
          el("time", {}, row.since ? t("since", { at: row.since }) : DASH),
        ),
      );
    }
    this.replaceChildren(el("h2", {}, t("page.health")), health ? list : el("p", { class: "dash" }, DASH));
  }
}
