#include "base/memory.h"

#include <malloc.h>

namespace fathom::base {

void keep_freed_memory() {
#if defined(__GLIBC__)
  mallopt(M_MMAP_MAX, 0);  // else pieces above 32 MiB are mapped, and unmapped, one by one
  mallopt(M_TRIM_THRESHOLD, -1);
#endif
}

}  // namespace fathom::base
