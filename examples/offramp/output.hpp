/// @file output.hpp
/// What the commands share to talk to people and to machines.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "offramp/offramp.hpp"

namespace tool {

using nlohmann::json;
using offramp::Index;

/// A line on the terminal that says how far long work has come; nothing where standard error is a file.
class Progress {
 public:
  Progress(std::string what, Index total) : what_(std::move(what)), total_(total), shown_(isatty(2) != 0) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() {
    if (shown_ && percent_ >= 0) std::fprintf(stderr, "\r\033[K");
  }
  void at(Index done) {
    const Index percent = total_ > 0 ? 100 * done / total_ : 100;
    if (!shown_ || percent == percent_) return;
    percent_ = percent;
    std::fprintf(stderr, "\r%s %3ld %%", what_.c_str(), static_cast<long>(percent));
  }

 private:
  std::string what_;
  Index total_, percent_ = -1;
  bool shown_;
};

/// 1234567 as "1.235 M".
inline std::string engineering(double v) {
  const char* unit = "";
  for (const char* next : {"k", "M", "G", "T"}) {
    if (v < 1000 && v > -1000) break;
    v /= 1000;
    unit = next;
  }
  char text[32];
  std::snprintf(text, sizeof text, v >= 100 || *unit == 0 ? "%.4g%s%s" : "%.3f%s%s", v, *unit ? " " : "", unit);
  return text;
}

inline std::string percent(double share, int digits = 2) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f %%", digits, 100 * share);
  return text;
}

inline std::string fixed(double v, int digits) {
  char text[48];
  std::snprintf(text, sizeof text, "%.*f", digits, v);
  return text;
}

inline json cost_json(const offramp::Cost& c) {
  return {{"macs", c.macs}, {"flops", c.flops}, {"executed_flops", c.executed}, {"integer_flops", c.integer}};
}

}  // namespace tool
