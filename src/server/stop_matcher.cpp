#include "server/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace fathom::server {

std::string StopMatcher::push(std::string_view text) {
  if (has_stopped_) return "";
  held_ += text;
  size_t first = std::string::npos, could_begin = 0;
  for (const std::string& stop : stops_) {
    first = std::min(first, held_.find(stop));
    for (size_t length = std::min(held_.size(), stop.size() - 1); length > could_begin; --length)
      if (held_.ends_with(std::string_view(stop).substr(0, length))) could_begin = length;
  }
  has_stopped_ = first != std::string::npos;
  std::string out = held_.substr(0, has_stopped_ ? first : held_.size() - could_begin);
  held_.erase(0, has_stopped_ ? held_.size() : out.size());
  return out;
}

std::string StopMatcher::finish() { return std::exchange(held_, ""); }

}  // namespace fathom::server
