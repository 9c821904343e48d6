/** Which model judges, and which guarantee holds. */
import { DASH, el } from "./dom.js";
import { QcElement } from "./element.js";
import { t } from "./words.js";

export class QcAbout extends QcElement {
  static section = "about";

  /** @param {any} about */
  render(about) {
    const provider = el("p", { class: "fine" }, `${t("about.provider")}: `);
    if (!about?.scripted) provider.append(about?.provider ?? DASH);
    else provider.append(el("span", { class: "chip" }, about.scripted));
    this.replaceChildren(
      el("h2", {}, t("about.title")),
      el("p", { class: "model" }, about?.model ?? DASH),
      el("p", { class: "guarantee" }, about?.guarantee ?? DASH),
      provider,
      el("p", { class: "fine" }, t("about.since", { version: about?.version ?? DASH, since: about?.since ?? DASH })),
    );
  }
}
