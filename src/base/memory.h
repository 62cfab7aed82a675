// What the process does with memory that it no longer uses.
#pragma once

namespace fathom::base {

// For work that allocates and frees the same gigabytes again and again, such as training steps:
// freed memory stays with the process, however large the piece. Given back, each of its pages would
// have to be mapped and cleared anew, which costs microseconds a page on some virtual machines.
void keep_freed_memory();

}  // namespace fathom::base
