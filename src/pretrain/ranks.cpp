#include "pretrain/ranks.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <string_view>

#include "base/check.h"

namespace fathom::pretrain {
namespace {

// What names rank, number of ranks, and the same on this machine, by what starts the processes.
struct Starter {
  const char *rank, *size, *local_rank, *local_size, *job;
};
constexpr Starter kTorchrun = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", ""};
constexpr Starter kStarters[] = {
    kTorchrun,
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_NAMESPACE"},
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_ID"}};

std::optional<int> number(const Environment& environment, const char* name) {
  const char* text = environment(name);
  if (text == nullptr) return {};
  int value = 0;
  const std::string_view view(text);
  const auto [end, error] = std::from_chars(view.data(), view.data() + view.size(), value);
  if (error != std::errc() || end != view.data() + view.size() || value < 0)
    fail("{} is \"{}\"; expected a number of at least 0", name, text);
  return value;
}

// Ranks without MASTER_PORT meet at a port that follows from their job, so that two jobs on one
// machine do not meet each other.
uint16_t port_of_job(std::string_view job) {
  uint32_t hash = 2166136261u;  // FNV-1a
  for (char c : job) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
  return static_cast<uint16_t>(20000 + hash % 10000);
}

void find_meeting_point(const Environment& environment, const Starter& starter, RankPlace& place) {
  const char* address = environment("MASTER_ADDR");
  if (address != nullptr)
    place.address = address;
  else if (place.local_size < place.size)
    fail(
        "{} of {} ranks are on this machine and MASTER_ADDR is not set; set it to the address of "
        "rank 0's machine",
        place.local_size, place.size);
  const auto port = number(environment, "MASTER_PORT");
  if (port && (*port < 1 || *port > 65535))
    fail("MASTER_PORT is {}; expected a port from 1 to 65535", *port);
  const char* job = environment(starter.job);
  if (!port && job == nullptr)
    fail("{} ranks and no MASTER_PORT; set it to a port that is free on rank 0's machine",
         place.size);
  place.port = port ? static_cast<uint16_t>(*port) : port_of_job(job);
}

}  // namespace

RankPlace rank_place(const Environment& environment) {
  for (const Starter& starter : kStarters) {
    const auto rank = number(environment, starter.rank), size = number(environment, starter.size);
    if (!rank || !size) {
      if ((rank || size) && starter.rank == kTorchrun.rank)
        fail("{} is set and {} is not; expected both or neither", rank ? "RANK" : "WORLD_SIZE",
             rank ? "WORLD_SIZE" : "RANK");
      continue;
    }
    if (*rank >= *size)
      fail("{} is {} and {} is {}; ranks count from 0", starter.rank, *rank, starter.size, *size);
    RankPlace place{*rank, *size};
    if (*size == 1) return place;
    place.local_rank = number(environment, starter.local_rank).value_or(*rank);
    place.local_size = number(environment, starter.local_size).value_or(*size);
    find_meeting_point(environment, starter, place);
    return place;
  }
  return {};
}

int threads_per_rank(const RankPlace& place) {
  const auto cores = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t allowed;  // mpirun binds each rank to cores of its own
  const int bound = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  return std::max(1, std::min(bound, cores / place.local_size));
}

}  // namespace fathom::pretrain
