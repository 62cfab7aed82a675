// Which rank this process is, and of how many. What starts the processes says so by environment
// variables: torchrun's, which `--nproc` sets as well, Open MPI's or Slurm's.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace fathom::pretrain {

struct RankPlace {
  int rank = 0;
  int size = 1;
  int local_rank = 0;  // on this machine
  int local_size = 1;
  std::string address = "127.0.0.1";
  uint16_t port = 0;
};

using Environment = std::function<const char*(const char* name)>;  // std::getenv

// The place among the ranks; a single rank where nothing says otherwise. Throws Error where the
// variables contradict each other or one is missing.
RankPlace rank_place(const Environment& environment);

// Cores of this machine for each of its ranks, at least one.
int threads_per_rank(const RankPlace& place);

}  // namespace fathom::pretrain
