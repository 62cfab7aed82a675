// What ranks share within one forward and backward pass.
#pragma once

#include <cstdint>
#include <vector>

#include "model/rank_group.h"

namespace fathom::model {

struct Distribution {
  // Ranks whose tokens are one batch: the balance loss counts the loads of all of them.
  RankGroup batch;
};

}  // namespace fathom::model
