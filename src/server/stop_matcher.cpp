#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "text/partial_marker.h"

namespace fathom::server {

std::string StopMatcher::push(std::string_view text) {
  if (has_stopped_) return "";
  held_ += text;
  return take(false);
}

std::string StopMatcher::finish() { return has_stopped_ ? "" : take(true); }

std::string StopMatcher::take(bool is_last) {
  if (is_past_) return std::exchange(held_, "");
  size_t until = held_.size();  // where it begins, or may begin
  if (!until_.empty()) {
    until = held_.find(until_);
    is_past_ = until != std::string::npos;
    if (!is_past_) until = held_.size() - (is_last ? 0 : text::partial_marker(held_, until_));
  }
  size_t first = std::string::npos, num_held = held_.size() - until;
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    if (!is_last) num_held = std::max(num_held, text::partial_marker(held_, stop));
  }
  has_stopped_ = first < until;
  if (has_stopped_) held_.erase(first);
  if (has_stopped_ || is_past_) return std::exchange(held_, "");
  std::string out = held_.substr(0, held_.size() - num_held);
  held_.erase(0, out.size());
  return out;
}

}  // namespace fathom::server
