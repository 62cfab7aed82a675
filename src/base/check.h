// Two ways to fail, kept apart.
//   CHECK*: a broken invariant, our own fault. Throws InternalError with values, file and line.
//   Error:  bad input. Names what was read, what was expected and the fix; commands print it as one
//           line and exit 1, the server turns it into an error reply.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace fathom {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

namespace base::internal {

[[noreturn]] inline void check_failed(const char* file, int line, const char* condition,
                                      const std::string& values) {
  throw InternalError(fmt::format("{}:{}: CHECK failed: {}{}{}", file, line, condition,
                                  values.empty() ? "" : ": ", values));
}

}  // namespace base::internal
}  // namespace fathom

#include "base/check_macros.h"
