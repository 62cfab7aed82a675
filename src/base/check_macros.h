// The CHECK macros alone, and without an include guard: glog, which LibTorch includes, defines
// macros of the same names, so model/tensor.h includes this file once more after LibTorch's
// headers.
#undef CHECK
#undef CHECK_EQ
#undef CHECK_LE
#undef CHECK_LT
#undef CHECK_GE

// CHECK(condition) or CHECK(condition, "format {}", value).
#define CHECK(condition, ...)                                                \
  do {                                                                       \
    if (!(condition)) [[unlikely]]                                           \
      ::fathom::base::internal::check_failed(__FILE__, __LINE__, #condition, \
                                             fmt::format("" __VA_ARGS__));   \
  } while (false)

#define FATHOM_CHECK_COMPARE(a, op, b)                                                   \
  do {                                                                                   \
    const auto& check_a = (a);                                                           \
    const auto& check_b = (b);                                                           \
    if (!(check_a op check_b)) [[unlikely]]                                              \
      ::fathom::base::internal::check_failed(__FILE__, __LINE__, #a " " #op " " #b,      \
                                             fmt::format("{} vs {}", check_a, check_b)); \
  } while (false)

#define CHECK_EQ(a, b) FATHOM_CHECK_COMPARE(a, ==, b)
#define CHECK_LE(a, b) FATHOM_CHECK_COMPARE(a, <=, b)
#define CHECK_LT(a, b) FATHOM_CHECK_COMPARE(a, <, b)
#define CHECK_GE(a, b) FATHOM_CHECK_COMPARE(a, >=, b)
