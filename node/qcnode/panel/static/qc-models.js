/** Models: what judges and what is coming. What-if only looks up and subtracts what the node counted. */
import { DASH, el, svg } from "./dom.js";
import { link } from "./link.js";
import { guard } from "./rights.js";
import { send } from "./send.js";
import { ask, table } from "./table.js";
import { t } from "./words.js";

const LIMITS = ["accept", "reject"];
const FIGURES = ["false_rejects", "escapes", "asked", "tokens"];

/**
 * The same sums as the node's own `what_if`, in whole parts of a million.
 * @param {any} counted @param {number|null} accept @param {number|null} reject
 * @returns {Record<string, number|null>}
 */
export function whatIf(counted, accept, reject) {
  const asked = Math.max(0, (reject === null ? 1_000_000 : counted.below[reject]) - (accept === null ? 0 : counted.below[accept]));
  const escapes = counted.escaped === null ? null : accept === null ? 0 : counted.escaped[accept];
  return { false_rejects: reject === null ? 0 : counted.rejected[reject], escapes, asked, tokens: asked * counted.tokens };
}

/** @param {number|null} million */
const perThousand = (million) => (million === null ? t("models.few") : (million / 1000).toLocaleString(document.documentElement.lang, { maximumFractionDigits: Math.abs(million) < 1_000_000 ? 1 : 0 }));

export class QcModels extends HTMLElement {
  connectedCallback() {
    if (this.firstChild) return;
    this.append(DASH);
    this.#read();
    link.addEventListener("state", () => this.back && guard(this.back, "maintain"));
    link.addEventListener("lost", () => this.replaceChildren(DASH));
  }

  async #read() {
    const told = await ask("/api/v1/models");
    if (!told) return;
    const { model, changes, what_if: counted } = told;
    const said = el("p", { role: "status" });
    const reason = /** @type {HTMLInputElement} */ (el("input", { "aria-label": t("models.reason"), placeholder: t("models.reason") }));
    this.back = /** @type {HTMLButtonElement} */ (el("button", { type: "button", class: "button" }, t("models.rollback")));
    this.back.addEventListener("click", async () => {
      const { ok, words, answer } = await send("/api/v1/models/rollback", { reason: reason.value });
      said.replaceChildren(ok ? answer.status : words || DASH);
    });
    guard(this.back, "maintain");
    const under = changes.change;
    const alike = under ? `${Math.round(under.agreeing * 100)} %` : "";
    const steps = changes.steps.map((/** @type {any} */ one) => el("li", {}, `${one.at.slice(0, 16).replace("T", " ")} ${one.what} ${one.model} ${one.words}`));
    this.replaceChildren(
      el("p", {}, el("b", {}, `${t("models.in_service")}: ${model.version}`), ` ${model.family}, ${model.created.slice(0, 10)}`, model.licence ? ` · ${model.licence}` : ""),
      el("ul", {}, ...model.promises.map((/** @type {string} */ words) => el("li", {}, words))),
      el("h2", {}, t("models.whatif")),
      this.#whatIf(counted, model),
      el("h2", {}, t("models.changes")),
      under ? el("p", { class: "warn" }, t("models.under_way", { ...under, alike })) : "",
      el("ul", { class: "marks" }, ...(steps.length ? steps.reverse() : [el("li", {}, t("models.steps"))])),
      el("p", { class: "tools" }, reason, this.back),
      said,
      el("h2", {}, t("models.trials")),
      table(["family", "features", "auroc"].map((name) => t(`models.${name}`)), model.trials),
    );
  }

  /** @param {any} counted @param {any} model */
  #whatIf(counted, model) {
    const last = counted.thresholds.length - 1;
    const place = { ...counted.now };
    const rows = el("div", {});
    const bars = svg("svg", { class: "hist", viewBox: `0 0 ${counted.bins.length} 2`, preserveAspectRatio: "none", "aria-hidden": "true" });
    counted.bins.forEach((/** @type {number[]} */ [good, bad], /** @type {number} */ at) => {
      bars.append(svg("rect", { class: "good", x: at, y: 1 - good, width: 0.9, height: good }), svg("rect", { class: "bad", x: at, y: 1, width: 0.9, height: bad }));
    });
    const lines = LIMITS.map(() => svg("line", { class: "limit", y1: 0, y2: 2 }));
    bars.append(...lines);
    const draw = () => {
      const now = whatIf(counted, counted.now.accept, counted.now.reject);
      const then = whatIf(counted, place.accept, place.reject);
      const cells = FIGURES.map((name) => [t(`models.${name}`), perThousand(now[name]), perThousand(then[name]), now[name] === null || then[name] === null ? DASH : perThousand(then[name] - now[name])]);
      rows.replaceChildren(table([t("models.kind", { prevalence: counted.prevalence }), t("models.now"), t("models.change"), t("models.difference")], cells));
      LIMITS.forEach((name, number) => {
        const at = place[name] === null ? -1 : counted.places[place[name]] * counted.bins.length;
        for (const end of ["x1", "x2"]) lines[number].setAttribute(end, String(at));
        sliders[number].value = String(place[name] ?? 0);
        shown[number].replaceChildren(place[name] === null ? t("models.none") : counted.thresholds[place[name]]);
      });
    };
    /** @param {string} name @param {number} to */
    const move = (name, to) => {
      const most = name === "accept" ? place.reject ?? last : last;
      place[name] = Math.max(name === "reject" ? place.accept ?? 0 : 0, Math.min(most, to));
      draw();
    };
    const shown = LIMITS.map(() => el("output", {}));
    const sliders = LIMITS.map((name) => /** @type {HTMLInputElement} */ (el("input", { type: "range", min: "0", max: String(last), "aria-label": t(`models.limit.${name}`) })));
    const knobs = LIMITS.map((name, number) => {
      sliders[number].addEventListener("input", () => move(name, Number(sliders[number].value)));
      const keys = [-1, 1].map((step) => {
        const key = el("button", { type: "button", class: "button step", "aria-label": `${t(`models.limit.${name}`)} ${step < 0 ? "−" : "+"}` }, step < 0 ? "−" : "+");
        key.addEventListener("click", () => move(name, (place[name] ?? 0) + step));
        return key;
      });
      return el("p", { class: "knob" }, el("span", {}, t(`models.limit.${name}`)), keys[0], sliders[number], keys[1], shown[number]);
    });
    const reset = el("button", { type: "button", class: "button" }, t("models.reset"));
    reset.addEventListener("click", () => {
      Object.assign(place, counted.now);
      draw();
    });
    draw();
    return el("div", { class: "whatif" }, bars, el("p", { class: "fine" }, t("models.of", model)), ...knobs, el("p", {}, reset), rows, el("p", { class: "fine" }, t("models.unlearnt")));
  }
}
