// The golden cases of the chat format, for its tests.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/json.h"
#include "text/chat_format.h"

namespace fathom::text {

// A vector, not a part of a temporary: the tests' loops must not outlive what they walk.
inline std::vector<Json> chat_cases(const char* kind) {
  const Json all = base::read_json_file(std::string(FATHOM_ROOT) + "/tests/data/chat.json");
  std::vector<Json> result(all.at(kind).begin(), all.at(kind).end());
  EXPECT_GT(result.size(), 5u);
  return result;
}

inline ThinkingMode mode_of(const Json& c) {
  return c["mode"] == "chat" ? ThinkingMode::kChat : ThinkingMode::kThinking;
}

}  // namespace fathom::text
