// Stop strings in text that arrives in pieces, as far as they count.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom::server {

class StopMatcher {
 public:
  // From `until` on, if it is not empty, nothing is a stop: a string that begins with it or in it
  // is none either.
  explicit StopMatcher(std::vector<std::string> stops, std::string_view until = {})
      : stops_(std::move(stops)), until_(until) {}

  // Text that is certainly before any stop string; what could begin one is held back.
  std::string push(std::string_view text);
  std::string finish();  // what was held back, up to a stop string that `until` might have been
  bool has_stopped() const { return has_stopped_; }

 private:
  std::string take(bool is_last);

  std::vector<std::string> stops_;
  std::string until_;
  std::string held_;
  bool is_past_ = false;  // `until` has come
  bool has_stopped_ = false;
};

}  // namespace fathom::server
