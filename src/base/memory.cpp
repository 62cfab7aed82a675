#include "base/memory.h"

#include <malloc.h>

#if defined(__SANITIZE_ADDRESS__)
// From sanitizer/allocator_interface.h, which GCC 12 does not install.
extern "C" size_t __sanitizer_get_current_allocated_bytes();
#endif

#if defined(__GLIBC__)
#define FATHOM_HAS_MALLINFO2 __GLIBC_PREREQ(2, 33)
#else
#define FATHOM_HAS_MALLINFO2 0
#endif

namespace fathom::base {

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);  // else pieces above 32 MiB are mapped, and unmapped, one by one
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

int64_t live_heap_bytes() {
#if defined(__SANITIZE_ADDRESS__)
  return static_cast<int64_t>(__sanitizer_get_current_allocated_bytes());
#elif FATHOM_HAS_MALLINFO2
  const struct mallinfo2 info = mallinfo2();
  return static_cast<int64_t>(info.uordblks + info.hblkhd);
#else
  return 0;
#endif
}

}  // namespace fathom::base
