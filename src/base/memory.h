// What the process does with memory that it no longer uses, and how much it does use.
#pragma once

#include <cstdint>

namespace fathom::base {

// For work that allocates and frees the same gigabytes again and again, such as training steps:
// freed memory stays with the process, however large the piece. Given back, each of its pages would
// have to be mapped and cleared anew, which costs microseconds a page on some virtual machines; on
// guests with shadow page tables every other page costs as much when it is next read.
void keep_freed_memory();

// Bytes allocated and not yet freed. Unlike the resident size it does not depend on what the
// allocator keeps for later, so it shows a leak of a few bytes a request. Mapped files are not in
// it. glibc's count takes in what its threads keep for themselves (up to a quarter of a MB each);
// AddressSanitizer's is exact. 0 where the C library does not count (glibc does from 2.33 on).
int64_t live_heap_bytes();

}  // namespace fathom::base
