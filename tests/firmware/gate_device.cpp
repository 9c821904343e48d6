// Drives the reject gate's logic from a list of events, one a line, and tells what the coil did.
#include <cstdio>
#include <cstring>

#include "qc_lamps.h"
#include "qc_reject_gate.h"

int main() {
  char line[256];
  qc::RejectGate* gate = nullptr;
  qc::StackLight light(1000u);
  bool open = false;
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    unsigned a = 0, b = 0, c = 0, d = 0, e = 0, f = 0;
    long long wall = 0, now = 0;
    char word[64] = "";
    if (std::sscanf(line, "new %u %u %u %u %u %u", &a, &b, &c, &d, &e, &f) == 6) {
      delete gate;
      gate = new qc::RejectGate(
          qc::GateSetup{qc::Setup{a, b, c, false, 0u, 0u}, d, e, f, 1000u});
      open = false;
    } else if (std::sscanf(line, "moved %u", &a) == 1) {
      gate->moved(static_cast<int32_t>(a));
    } else if (std::sscanf(line, "rebased %u", &a) == 1) {
      gate->rebased(static_cast<int32_t>(a));
    } else if (std::sscanf(line, "trigger %lld", &wall) == 1) {
      gate->trigger(wall);
    } else if (std::sscanf(line, "beat %u %u", &a, &b) == 2) {
      gate->beat(a != 0, b);
    } else if (std::sscanf(line, "answer %u %63s %lld %lld", &a, word, &wall, &now) == 4) {
      gate->answer(a, qc::action_of(word), wall, now);
    } else if (std::sscanf(line, "tick %u", &a) == 1) {
      open = gate->tick(a);
      std::printf("%d\n", open ? 1 : 0);
    } else if (std::strncmp(line, "counts", 6) == 0) {
      const qc::Counts& n = gate->counts();
      std::printf("%u %u %u %u %u %u\n", n.triggers, n.passed, n.diverted, n.late, n.unmatched,
                  n.lost_step);
    } else if (std::sscanf(line, "utc %63s", word) == 1) {
      std::printf("%lld\n", static_cast<long long>(qc::utc_ms(word)));
    } else if (std::sscanf(line, "hb %u", &a) == 1) {
      light.beat(a);
    } else if (std::sscanf(line, "state %u %u %u %63s", &a, &b, &c, word) == 4) {
      light.state(a != 0, b != 0, c != 0, word);
    } else if (std::sscanf(line, "lamps %u", &a) == 1) {
      const qc::Lamps lamps = light.lamps(a);
      std::printf("%d%d%d\n", lamps.red ? 1 : 0, lamps.amber ? 1 : 0, lamps.green ? 1 : 0);
    } else {
      std::fprintf(stderr, "not understood: %s", line);
      return 2;
    }
  }
  delete gate;
  return 0;
}
