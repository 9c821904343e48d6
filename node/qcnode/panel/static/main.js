/** Names the elements and opens the connection. */
import { link } from "./link.js";
import { QcAbout } from "./qc-about.js";
import { QcAlarm } from "./qc-alarm.js";
import { QcCounters } from "./qc-counters.js";
import { QcEvidence } from "./qc-evidence.js";
import { QcFrame } from "./qc-frame.js";
import { QcHealth } from "./qc-health.js";
import { QcLink } from "./qc-link.js";
import { QcMoney } from "./qc-money.js";
import { QcPart } from "./qc-part.js";
import { QcReview } from "./qc-review.js";
import { QcStrip } from "./qc-strip.js";

customElements.define("qc-evidence", QcEvidence);
customElements.define("qc-about", QcAbout);
customElements.define("qc-alarm", QcAlarm);
customElements.define("qc-counters", QcCounters);
customElements.define("qc-frame", QcFrame);
customElements.define("qc-health", QcHealth);
customElements.define("qc-link", QcLink);
customElements.define("qc-money", QcMoney);
customElements.define("qc-part", QcPart);
customElements.define("qc-review", QcReview);
customElements.define("qc-strip", QcStrip);

link.addEventListener("state", () => {
  const build = link.sections.build;
  const busy = document.querySelector("qc-review[data-busy]");
  // A node that came back as another one brings other pages along.
  if (build && build !== document.body.dataset.build && !busy) location.reload();
});
link.start();
