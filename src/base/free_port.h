// A TCP port of this machine that nobody listens on.
#pragma once

#include <cstdint>

namespace fathom::base {

// Of 127.0.0.1, free when this returns. Another program may take it before the caller does.
uint16_t free_port();

}  // namespace fathom::base
