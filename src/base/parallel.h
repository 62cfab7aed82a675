// Parallel loops over independent items, on threads that are kept between loops.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fathom::base {

// Number of threads that parallel loops use, process-wide; at least 1, at first one a core.
void set_num_threads(int num_threads);
int num_threads();

namespace internal {
using RangeBody = void (*)(void* context, int64_t begin, int64_t end);
void parallel_ranges(int64_t count, int64_t grain, RangeBody body, void* context);
}  // namespace internal

// Calls body(begin, end) on disjoint ranges that cover [0, count), each of at least `grain` items
// but the last. The split depends on the thread count: a body must give every item the same result
// whichever range it falls in. Nested calls run serially. The first exception of a body is
// rethrown.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  auto call = [](void* context, int64_t begin, int64_t end) {
    (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end);
  };
  internal::parallel_ranges(count, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fathom::base
