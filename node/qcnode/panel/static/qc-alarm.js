/** The strip on every page: the worst alarm nobody has seen, in words, and how many there are. */
import { el } from "./dom.js";
import { QcElement } from "./element.js";
import { priority } from "./shapes.js";
import { t } from "./words.js";

export class QcAlarm extends QcElement {
  static section = "alarms";

  /** @param {any} alarms */
  render(alarms) {
    this.className = "";
    this.replaceChildren();
    if (!alarms) return;
    const { worst, counts } = alarms;
    if (worst) {
      this.className = `p${worst.priority} ${worst.state}`;
      const words = [worst.name, worst.words].filter(Boolean).join(": ");
      this.append(priority(worst.priority), el("a", { href: "/alarms", title: words }, el("span", {}, words)));
    }
    const all = Object.entries(counts).filter(([, count]) => Number(count) > 0);
    if (!all.length) {
      this.append(el("span", { class: "fine" }, t("alarms.none")));
      return;
    }
    const tally = el("a", { href: "/alarms", class: "tally", "aria-label": t("alarms.tally") });
    for (const [rank, count] of all) tally.append(el("span", {}, priority(Number(rank)), String(count)));
    this.append(tally);
  }
}
