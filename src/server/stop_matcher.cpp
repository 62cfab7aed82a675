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
  size_t limit = held_.size();  // where `until` begins, or may begin
  if (!until_.empty() && !is_past_) {
    limit = held_.find(until_);
    is_past_ = limit != std::string::npos;
    if (!is_past_) limit = held_.size() - (is_last ? 0 : text::partial_marker(held_, until_));
  } else if (is_past_) {
    limit = 0;
  }
  size_t first = std::string::npos, could_begin = held_.size() - limit;
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    if (!is_last) could_begin = std::max(could_begin, text::partial_marker(held_, stop));
  }
  has_stopped_ = first < limit;
  if (has_stopped_) {
    held_.erase(first);
    return std::exchange(held_, "");
  }
  if (is_past_) return std::exchange(held_, "");
  const std::string out = held_.substr(0, held_.size() - could_begin);
  held_.erase(0, out.size());
  return out;
}

}  // namespace fathom::server
