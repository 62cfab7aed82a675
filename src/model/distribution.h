// What ranks share within one forward and backward pass. A group of one rank shares nothing.
#pragma once

#include "model/rank_group.h"

namespace fathom::model {

struct Distribution {
  // Ranks whose tokens are one batch: the balance loss counts the loads of all of them.
  RankGroup batch;
  // Expert parallelism: each rank computes an equal, contiguous part of every layer's experts, for
  // the tokens of all. They run the same layers at the same time.
  RankGroup experts;
  // Sequence parallelism: rank r has the r-th of equal parts of the batch's tokens. Queries stay,
  // keys (attention's latents, the indexer's keys) go to all.
  RankGroup sequence;
};

}  // namespace fathom::model
