/** Names the elements and opens the connection. */
import { link } from "./link.js";
import { QcAbout } from "./qc-about.js";
import { QcAlarm } from "./qc-alarm.js";
import { QcAlarms } from "./qc-alarms.js";
import { QcAudit } from "./qc-audit.js";
import { QcBars } from "./qc-bars.js";
import { QcCase } from "./qc-case.js";
import { QcChips } from "./qc-chips.js";
import { QcCounters } from "./qc-counters.js";
import { QcDecide } from "./qc-decide.js";
import { QcEvidence } from "./qc-evidence.js";
import { QcFrame } from "./qc-frame.js";
import { QcGolden } from "./qc-golden.js";
import { QcHealth } from "./qc-health.js";
import { QcHelp } from "./qc-help.js";
import { QcHistory } from "./qc-history.js";
import { QcKeypad } from "./qc-keypad.js";
import { QcKill } from "./qc-kill.js";
import { QcLink } from "./qc-link.js";
import { QcModels } from "./qc-models.js";
import { QcMoney } from "./qc-money.js";
import { QcPart } from "./qc-part.js";
import { QcPeople } from "./qc-people.js";
import { QcQueue } from "./qc-queue.js";
import { QcReview } from "./qc-review.js";
import { QcStops } from "./qc-stops.js";
import { QcStrip } from "./qc-strip.js";
import { QcTile } from "./qc-tile.js";
import { QcTold } from "./qc-told.js";
import { QcTrends } from "./qc-trends.js";
import { QcWho } from "./qc-who.js";
import { measure } from "./screen.js";

measure(document.documentElement);

// Those that others call into come first.
customElements.define("qc-about", QcAbout);
customElements.define("qc-alarm", QcAlarm);
customElements.define("qc-alarms", QcAlarms);
customElements.define("qc-audit", QcAudit);
customElements.define("qc-bars", QcBars);
customElements.define("qc-case", QcCase);
customElements.define("qc-chips", QcChips);
customElements.define("qc-counters", QcCounters);
customElements.define("qc-decide", QcDecide);
customElements.define("qc-evidence", QcEvidence);
customElements.define("qc-frame", QcFrame);
customElements.define("qc-golden", QcGolden);
customElements.define("qc-health", QcHealth);
customElements.define("qc-help", QcHelp);
customElements.define("qc-history", QcHistory);
customElements.define("qc-keypad", QcKeypad);
customElements.define("qc-kill", QcKill);
customElements.define("qc-link", QcLink);
customElements.define("qc-models", QcModels);
customElements.define("qc-money", QcMoney);
customElements.define("qc-part", QcPart);
customElements.define("qc-people", QcPeople);
customElements.define("qc-queue", QcQueue);
customElements.define("qc-stops", QcStops);
customElements.define("qc-strip", QcStrip);
customElements.define("qc-tile", QcTile);
customElements.define("qc-told", QcTold);
customElements.define("qc-trends", QcTrends);
customElements.define("qc-who", QcWho);
customElements.define("qc-review", QcReview);

link.addEventListener("state", () => {
  const build = link.sections.build;
  const busy = document.querySelector("qc-review[data-busy], :is(input, select):focus");
  // A node that came back as another one brings other pages along.
  if (build && build !== document.body.dataset.build && !busy) location.reload();
});
link.start();
