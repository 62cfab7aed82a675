#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "text/partial_marker.h"

namespace fathom::server {

std::string StopMatcher::push(std::string_view text) {
  if (has_stopped_) return "";
  held_ += text;
  size_t first = std::string::npos, could_begin = 0;
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    could_begin = std::max(could_begin, text::partial_marker(held_, stop));
  }
  has_stopped_ = first != std::string::npos;
  std::string out = held_.substr(0, has_stopped_ ? first : held_.size() - could_begin);
  held_.erase(0, has_stopped_ ? held_.size() : out.size());
  return out;
}

std::string StopMatcher::finish() { return std::exchange(held_, ""); }

}  // namespace fathom::server
