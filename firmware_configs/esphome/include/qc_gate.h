// The part between camera and gate, for a controller at the gate.
//
// What node/qcnode/track.py says, in C++11 without allocation: a FIFO of parts whose default
// is to divert, positions on a ring of 2^32 pulses, and no action for a part in doubt. Both
// are given the same 10,000 random belts in the tests and must do the same. Nothing here
// knows the time: no movement, no fire.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace qc {

enum class Action : uint8_t { kNone = 0, kAccept = 1, kReject = 2, kDivert = 3 };

// Why a part met the gate's default; kCommanded: it did not.
enum class Default : uint8_t {
  kCommanded = 0,
  kUnspoken,
  kLate,
  kCrowded,
  kUnseen,
  kStray,
  kReleased
};

struct Crossing {
  uint32_t seq;  // 0: a part that no trigger had announced
  Action action;
  Default why;
  Action late;  // what was asked for too late, or kNone
};

// The pulses from `position` to `target` the shorter way round; negative: passed.
inline int32_t ahead(uint32_t position, uint32_t target) {
  return static_cast<int32_t>(target - position);
}

struct Setup {
  uint32_t gate_pulses;   // from camera to gate
  uint32_t guard_pulses;  // what the actuator needs, and what a part may be off
  uint32_t apart_pulses;  // nearer to each other, parts cannot be sorted
  bool has_eye;
  uint32_t eye_before_gate_pulses;
  uint32_t eye_window_pulses;

  // Whether no part can be taken for another; a setup that is not sound must not be run.
  bool sound() const {
    if (guard_pulses >= gate_pulses || gate_pulses >= 0x80000000u) return false;
    if (apart_pulses >= gate_pulses) return false;
    if (!has_eye) return true;
    const uint64_t both = 2ull * eye_window_pulses;
    const uint64_t room = apart_pulses > 1 ? apart_pulses : 1;
    return both < room && both <= eye_before_gate_pulses &&
           static_cast<uint64_t>(eye_before_gate_pulses) + eye_window_pulses < gate_pulses;
  }
};

template <size_t kSlots>
class Tracker {
 public:
  explicit Tracker(const Setup& setup) : setup_(setup) {}

  size_t size() const { return count_; }

  // Follow a part from the camera on. False: there is no place, or it cannot come after the
  // last one; it then passes unannounced, and the gate's default is to divert.
  bool add(uint32_t seq, uint32_t position) {
    if (count_ == kSlots) return false;
    for (size_t at = count_; at-- > 0;) {
      if (slots_[at].seq == 0) continue;
      if (seq <= slots_[at].seq || ahead(slots_[at].born, position) < 0) return false;
      break;
    }
    slots_[count_++] = Slot{seq, position, position + setup_.gate_pulses, Action::kNone,
                            Action::kNone, false};
    return true;
  }

  // Set a part's action; false: too late, or no such part. The last one in time stands.
  bool command(uint32_t seq, Action action, uint32_t position) {
    for (size_t at = 0; at < count_; ++at)
      if (slots_[at].seq == seq && seq != 0) return set(slots_[at], action, position);
    return false;
  }

  // As command, by tag (0 to 255); a tag that two parts bear names neither.
  bool command_tag(uint8_t tag, Action action, uint32_t position) {
    Slot* found = nullptr;
    for (size_t at = 0; at < count_; ++at) {
      if (slots_[at].seq == 0 || static_cast<uint8_t>(slots_[at].seq) != tag) continue;
      if (found != nullptr) return false;
      found = &slots_[at];
    }
    return found != nullptr && set(*found, action, position);
  }

  // The eye sees a part: the first one that may be there is put right. False: there was no
  // place for one that nobody had announced.
  bool see(uint32_t position) {
    const uint32_t gate = position + setup_.eye_before_gate_pulses;
    const int64_t window = setup_.eye_window_pulses;
    for (size_t at = 0; at < count_; ++at) {
      const int64_t off = ahead(gate, slots_[at].gate);
      if (off > window) break;
      if (!slots_[at].seen && off >= -window) {
        slots_[at].gate = gate;
        slots_[at].seen = true;
        return true;
      }
    }
    if (count_ == kSlots) return false;
    size_t behind = 0;
    while (behind < count_ && ahead(gate, slots_[behind].gate) <= 0) ++behind;
    for (size_t at = count_; at > behind; --at) slots_[at] = slots_[at - 1];
    slots_[behind] = Slot{0, 0, gate, Action::kNone, Action::kNone, true};
    ++count_;
    return true;
  }

  // Move the belt to `position`; true: a part met the gate, as `met` says. Call until false.
  bool pass_to(uint32_t position, Crossing* met) {
    if (count_ == 0 || ahead(position, slots_[0].gate) > 0) return false;
    const Slot slot = slots_[0];
    for (size_t at = 1; at < count_; ++at) slots_[at - 1] = slots_[at];
    --count_;
    *met = crossing(slot);
    last_gate_ = slot.gate;
    has_last_ = true;
    return true;
  }

  // Forget every action given so far: whoever gave them is gone. The parts stay.
  void disown() {
    for (size_t at = 0; at < count_; ++at) slots_[at].action = Action::kNone;
  }

  // De-energise: every part still on its way meets the default.
  bool release(Crossing* met) {
    if (count_ == 0) return false;
    *met = Crossing{slots_[0].seq, Action::kDivert, Default::kReleased, slots_[0].late};
    for (size_t at = 1; at < count_; ++at) slots_[at - 1] = slots_[at];
    --count_;
    return true;
  }

 private:
  struct Slot {
    uint32_t seq;
    uint32_t born;
    uint32_t gate;
    Action action;
    Action late;
    bool seen;
  };

  bool set(Slot& slot, Action action, uint32_t position) {
    if (ahead(position, slot.gate) <= static_cast<int64_t>(setup_.guard_pulses)) {
      slot.late = action;
      return false;
    }
    slot.action = action;
    return true;
  }

  Crossing crossing(const Slot& slot) const {
    Default why = Default::kCommanded;
    if (slot.seq == 0)
      why = Default::kStray;
    else if (setup_.has_eye && !slot.seen)
      why = Default::kUnseen;
    else if (crowded(slot))
      why = Default::kCrowded;
    else if (slot.action == Action::kNone)
      why = slot.late == Action::kNone ? Default::kUnspoken : Default::kLate;
    const Action action = why == Default::kCommanded ? slot.action : Action::kDivert;
    return Crossing{slot.seq, action, why, slot.late};
  }

  bool crowded(const Slot& slot) const {
    if (has_last_ && near(slot.gate, last_gate_)) return true;
    for (size_t at = 0; at < count_; ++at)
      if (near(slot.gate, slots_[at].gate)) return true;
    return false;
  }

  bool near(uint32_t one, uint32_t other) const {
    const int64_t off = ahead(one, other);
    return (off < 0 ? -off : off) < static_cast<int64_t>(setup_.apart_pulses);
  }

  Setup setup_;
  Slot slots_[kSlots];
  size_t count_ = 0;
  uint32_t last_gate_ = 0;
  bool has_last_ = false;
};

// Whether the node is there: it must beat at least every `limit_ms`, or the gate diverts.
class Watchdog {
 public:
  explicit Watchdog(uint32_t limit_ms) : limit_ms_(limit_ms) {}
  void beat(uint32_t now_ms) {
    last_ms_ = now_ms;
    ever_ = true;
  }
  bool alive(uint32_t now_ms) const { return ever_ && now_ms - last_ms_ <= limit_ms_; }

 private:
  uint32_t limit_ms_;
  uint32_t last_ms_ = 0;
  bool ever_ = false;
};

}  // namespace qc
