// Reads belts from standard input and says what the tracker of qc_gate.h does with them.
#include <cstdio>
#include <cstring>

#include "qc_gate.h"

int main() {
  char what[16];
  unsigned long a, b, c, d, e, f;
  qc::Setup setup{2, 0, 0, false, 0, 0};
  qc::Tracker<64> tracker(setup);
  while (std::scanf("%15s %lu %lu %lu %lu %lu %lu", what, &a, &b, &c, &d, &e, &f) == 7) {
    const uint32_t position = static_cast<uint32_t>(b);
    const qc::Action action = static_cast<qc::Action>(c);
    qc::Crossing met;
    if (!std::strcmp(what, "setup")) {
      setup = qc::Setup{static_cast<uint32_t>(a), position, static_cast<uint32_t>(c), d != 0,
                        static_cast<uint32_t>(e), static_cast<uint32_t>(f)};
      tracker = qc::Tracker<64>(setup);
      std::printf("sound %d\n", setup.sound());
    } else if (!std::strcmp(what, "add")) {
      std::printf("add %d\n", tracker.add(static_cast<uint32_t>(a), position));
    } else if (!std::strcmp(what, "command")) {
      std::printf("command %d\n", tracker.command(static_cast<uint32_t>(a), action, position));
    } else if (!std::strcmp(what, "tag")) {
      std::printf("tag %d\n", tracker.command_tag(static_cast<uint8_t>(a), action, position));
    } else if (!std::strcmp(what, "see")) {
      tracker.see(position);
    } else if (!std::strcmp(what, "pass")) {
      while (tracker.pass_to(position, &met))
        std::printf("met %lu %d %d %d\n", static_cast<unsigned long>(met.seq),
                    static_cast<int>(met.action), static_cast<int>(met.why),
                    static_cast<int>(met.late));
    } else if (!std::strcmp(what, "disown")) {
      tracker.disown();
    } else if (!std::strcmp(what, "release")) {
      while (tracker.release(&met))
        std::printf("met %lu %d %d %d\n", static_cast<unsigned long>(met.seq),
                    static_cast<int>(met.action), static_cast<int>(met.why),
                    static_cast<int>(met.late));
      std::printf("left %lu\n", static_cast<unsigned long>(tracker.size()));
    } else if (!std::strcmp(what, "watch")) {
      qc::Watchdog dog(static_cast<uint32_t>(a));
      std::printf("watch %d", dog.alive(position));
      dog.beat(position);
      std::printf(" %d\n", dog.alive(static_cast<uint32_t>(c)));
    }
  }
  return 0;
}
