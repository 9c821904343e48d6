// A reject gate behind a node that speaks MQTT: which answer belongs to which part, and when
// the coil is energised. C++11, header only, no heap, no clock of its own.
//
// The gate counts triggers itself, and so does the node; neither can know what the other
// missed. So an answer finds its part by when the picture was taken: the one part whose
// trigger this gate saw at that moment, by a clock both have from the same place. None, or
// two, and the answer is nobody's. An answer that comes from the future or too late shows a
// clock that is wrong, or a network that is; it is nobody's either, and as long as parts are
// further apart in time than match_ms + answer_ms, a wrong clock alone mixes no two of them up.
// (A clock that is behind by a whole part while all answers are late by as much would.)
//
// Once the two counts have agreed in kAgree answers, one that does not agree shows that a
// trigger was missed on one side: all parts on their way are diverted, and the counts must
// agree anew. The coil lets parts pass; without it they divert.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "qc_gate.h"

namespace qc {

struct GateSetup {
  Setup belt;
  uint32_t open_pulses;  // how far the belt moves while one part passes the gate
  uint32_t match_ms;     // how far apart a trigger and its picture's time may be
  uint32_t answer_ms;    // an answer that takes longer is not believed
  uint32_t silent_ms;    // a node that is silent for longer is not there
};

struct Counts {
  uint32_t triggers;
  uint32_t passed;
  uint32_t diverted;
  uint32_t late;
  uint32_t unmatched;  // answers that were nobody's
  uint32_t lost_step;  // how often a trigger was missed on one side
};

class RejectGate {
 public:
  static constexpr size_t kParts = 64;
  static constexpr uint8_t kAgree = 3;

  explicit RejectGate(const GateSetup& setup)
      : setup_(setup),
        tracker_(setup.belt),
        watchdog_(setup.silent_ms) {}

  // The encoder's count is now `count`; any start and any wrap at 32 bits.
  void moved(int32_t count) {
    position_ += static_cast<uint32_t>(count) - count_;
    count_ = static_cast<uint32_t>(count);
  }

  // The encoder's count was set to `count`, and the belt did not move.
  void rebased(int32_t count) { count_ = static_cast<uint32_t>(count); }

  bool idle() const { return tracker_.size() == 0 && !open_; }

  // A part is at the camera; `wall_ms` is the time of day, or 0 when nobody knows it.
  void trigger(int64_t wall_ms) {
    const uint32_t mine = ++counts_.triggers;
    seen_[mine % kParts] = Seen{mine, wall_ms};
    if (tracker_.add(mine, position_)) return;
    ++counts_.diverted;
    let_go();
  }

  // The node beats; one that cannot judge parts counts as one that is not there.
  void beat(bool ready, uint32_t now_ms) {
    if (ready) watchdog_.beat(now_ms);
  }

  // The node's answer for its trigger `seq`, whose picture was taken at `captured_ms`; it is
  // now `wall_ms`, or 0 when nobody knows.
  void answer(uint32_t seq, Action action, int64_t captured_ms, int64_t wall_ms) {
    const int64_t took = wall_ms - captured_ms;
    const bool timely = took >= -static_cast<int64_t>(setup_.match_ms) &&
                        took <= static_cast<int64_t>(setup_.answer_ms);
    const uint32_t mine = timely ? part_at(captured_ms) : 0;
    if (mine == 0) {
      ++counts_.unmatched;
      return;
    }
    const uint32_t apart = seq - mine;
    if (agreed_ == 0 || apart != apart_) {
      if (agreed_ != 0) {
        ++counts_.lost_step;
        let_go();
      }
      apart_ = apart;
      agreed_ = 1;
      last_ = seq;
      return;
    }
    if (agreed_ < kAgree) {
      if (seq != last_) ++agreed_;  // The same answer twice agrees with itself only.
      last_ = seq;
      if (agreed_ < kAgree) return;
    }
    if (!tracker_.command(mine, action, position_)) ++counts_.late;
  }

  // Say whether the coil is energised now. To be called as often as can be.
  bool tick(uint32_t now_ms) {
    if (!setup_.belt.sound() || !watchdog_.alive(now_ms)) {
      let_go();
      return false;
    }
    Crossing met;
    while (tracker_.pass_to(position_, &met)) {
      open_ = met.action == Action::kAccept;
      open_until_ = position_ + setup_.open_pulses;
      ++(open_ ? counts_.passed : counts_.diverted);
    }
    if (open_ && ahead(position_, open_until_) <= 0) open_ = false;
    return open_;
  }

  const Counts& counts() const { return counts_; }

 private:
  struct Seen {
    uint32_t seq;
    int64_t wall_ms;
  };

  uint32_t part_at(int64_t captured_ms) const {
    const int64_t near = setup_.match_ms;
    const int64_t wide = near + setup_.answer_ms;
    uint32_t found = 0;
    bool matches = false;
    for (size_t at = 0; at < kParts; ++at) {
      const Seen& seen = seen_[at];
      if (seen.seq == 0 || seen.wall_ms == 0) continue;
      const int64_t off = captured_ms - seen.wall_ms;
      if (off < -wide || off > wide) continue;
      if (found != 0) return 0;
      found = seen.seq;
      matches = off >= -near && off <= near;
    }
    return matches ? found : 0;
  }

  void let_go() {
    Crossing met;
    while (tracker_.release(&met)) ++counts_.diverted;
    open_ = false;
    // Until the counts agree anew at least one part is followed and diverted, so that none
    // that may pass lies right behind one that is not followed.
    agreed_ = 0;
  }

  GateSetup setup_;
  Tracker<kParts> tracker_;
  Watchdog watchdog_;
  Seen seen_[kParts] = {};
  Counts counts_ = {};
  uint32_t position_ = 0;
  uint32_t count_ = 0;
  uint32_t apart_ = 0;
  uint32_t last_ = 0;
  uint32_t open_until_ = 0;
  uint8_t agreed_ = 0;
  bool open_ = false;
};

// A length of belt in encoder pulses.
inline uint32_t pulses(double mm, double per_mm) {
  return static_cast<uint32_t>(mm * per_mm + 0.5);
}

// An encoder's count, which is none before the first pulse.
inline int32_t whole(float count) { return count == count ? static_cast<int32_t>(count) : 0; }

// What the node calls an action; none of its words: the gate's default.
inline Action action_of(const char* word) {
  if (word == nullptr) return Action::kDivert;
  const char* accept = "ACCEPT";
  const char* reject = "REJECT";
  size_t at = 0;
  while (word[at] != 0 && word[at] == accept[at]) ++at;
  if (word[at] == 0 && accept[at] == 0) return Action::kAccept;
  at = 0;
  while (word[at] != 0 && word[at] == reject[at]) ++at;
  return word[at] == 0 && reject[at] == 0 ? Action::kReject : Action::kDivert;
}

// 2026-11-22T15:49:14.123456Z in ms since 1970; 0 for anything else.
inline int64_t utc_ms(const char* text) {
  if (text == nullptr) return 0;
  const char* shape = "dddd-dd-ddTdd:dd:dd";
  int32_t field[6] = {0, 0, 0, 0, 0, 0};
  size_t at = 0;
  size_t part = 0;
  for (; shape[at] != 0; ++at) {
    if (shape[at] == 'd') {
      if (text[at] < '0' || text[at] > '9') return 0;
      field[part] = field[part] * 10 + (text[at] - '0');
    } else {
      if (text[at] != shape[at]) return 0;
      ++part;
    }
  }
  int32_t ms = 0;
  if (text[at] == '.') {
    int32_t worth = 100;
    for (++at; text[at] >= '0' && text[at] <= '9'; ++at, worth /= 10)
      ms += (text[at] - '0') * worth;
  }
  if (text[at] != 'Z' || text[at + 1] != 0) return 0;
  if (field[1] < 1 || field[1] > 12 || field[2] < 1 || field[2] > 31 || field[3] > 23 ||
      field[4] > 59 || field[5] > 60)
    return 0;
  // Days since 1970, the year beginning in March.
  const int32_t year = field[0] - (field[1] <= 2 ? 1 : 0);
  const int32_t era = year / 400;
  const int32_t of_era = year - era * 400;
  const int32_t of_year = (153 * (field[1] + (field[1] > 2 ? -3 : 9)) + 2) / 5 + field[2] - 1;
  const int32_t day = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
  const int64_t days = static_cast<int64_t>(era) * 146097 + day - 719468;
  return ((days * 24 + field[3]) * 60 + field[4]) * 60000 + field[5] * 1000 + ms;
}

}  // namespace qc
