/** The golden reference: a good part the model was released with, or the words that there is none. */
import { el } from "./dom.js";
import { t } from "./words.js";

export class QcGolden extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    if (this.dataset.there === undefined) {
      this.append(el("p", { class: "notice" }, t("golden.none")));
      return;
    }
    const picture = el("img", { src: "/img/reference.png", alt: t("golden.alt") });
    picture.addEventListener("error", () => picture.replaceWith(el("p", { class: "notice" }, t("golden.none"))));
    this.append(picture, el("p", { class: "caption" }, t("golden.title")));
  }
}
