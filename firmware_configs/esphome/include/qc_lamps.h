// What the lamps of a stack light say of a node. C++11, header only.
#pragma once

#include <stdint.h>
#include <string.h>

#include "qc_gate.h"

namespace qc {

struct Lamps {
  bool red;    // parts are diverted because nobody judges them
  bool amber;  // something wants a person, and parts are still judged
  bool green;  // the line runs and parts are judged
};

class StackLight {
 public:
  explicit StackLight(uint32_t silent_ms) : watchdog_(silent_ms) {}

  void beat(uint32_t now_ms) { watchdog_.beat(now_ms); }

  void state(bool online, bool ready, bool degraded, const char* packml) {
    online_ = online;
    ready_ = ready;
    degraded_ = degraded;
    runs_ = packml != nullptr && strcmp(packml, "Execute") == 0;
  }

  Lamps lamps(uint32_t now_ms) const {
    const bool judged = online_ && ready_ && watchdog_.alive(now_ms);
    return Lamps{!judged, judged && degraded_, judged && runs_};
  }

 private:
  Watchdog watchdog_;
  bool online_ = false;
  bool ready_ = false;
  bool degraded_ = false;
  bool runs_ = false;
};

}  // namespace qc
