#include "pretrain/division.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace fathom::pretrain {
namespace {

using torch::Tensor;

// Ranks [begin, begin + count).
std::vector<int> neighbours(int64_t begin, int64_t count) {
  std::vector<int> ranks(count);
  for (int64_t i = 0; i < count; ++i) ranks[i] = static_cast<int>(begin + i);
  return ranks;
}

double num_targets(const Tensor& targets_N) { return (targets_N >= 0).sum().item<double>(); }

}  // namespace

namespace {

void check_groups(const Ranks& ranks, const Recipe& recipe) {
  const int64_t size = ranks.all.size();
  for (const auto& [name, count] : {std::pair("--sequence-parallel", ranks.sequence_parallel),
                                    std::pair("--expert-parallel", ranks.expert_parallel)})
    if (size % count != 0)
      fail("{} is {} of {} ranks; expected a divisor of their number", name, count, size);
  if (recipe.training.sequence_length % ranks.sequence_parallel != 0)
    fail("training.sequence_length is {}; --sequence-parallel {} needs a multiple of it",
         recipe.training.sequence_length, ranks.sequence_parallel);
  if (recipe.model.n_routed_experts % ranks.expert_parallel != 0)
    fail("model.n_routed_experts is {}; --expert-parallel {} needs a multiple of it",
         recipe.model.n_routed_experts, ranks.expert_parallel);
}

}  // namespace

Division divide(const Ranks& ranks, const Recipe& recipe) {
  check_groups(ranks, recipe);
  const TrainingRecipe& t = recipe.training;
  Division division;
  division.all = ranks.all;
  division.num_streams = ranks.all.size() / ranks.sequence_parallel;
  division.stream = ranks.all.rank() / ranks.sequence_parallel;
  const int64_t batches = t.batch_rows / t.micro_batch_rows, streams = division.num_streams;
  division.total_micro_batches = batches;
  division.num_micro_batches = std::max<int64_t>(1, batches / streams);
  const int64_t streams_per_batch = std::max<int64_t>(1, streams / batches);
  division.first_micro_batch = division.stream / streams_per_batch * division.num_micro_batches;
  if (division.num_micro_batches * streams != batches * streams_per_batch ||
      t.micro_batch_rows % streams_per_batch != 0)
    fail(
        "training.batch_rows = {} in micro-batches of {} rows do not divide over {} ranks; choose "
        "batch_rows and micro_batch_rows so that each gets as many rows",
        t.batch_rows, t.micro_batch_rows, streams);
  division.num_parts = streams_per_batch * ranks.sequence_parallel;
  division.part = ranks.all.rank() % division.num_parts;
  const auto group = [&](int64_t size) {
    return ranks.all.choose(neighbours(ranks.all.rank() / size * size, size));
  };
  division.distribution = {group(division.num_parts), group(ranks.expert_parallel),
                           group(ranks.sequence_parallel)};
  return division;
}

LocalBatch local_batch(const model::TrainingBatch& whole, int64_t part, int64_t num_parts) {
  LocalBatch local{whole, {}};
  local.batch.after_next_N = model::targets_after_next(whole);
  if (num_parts == 1) return local;
  const int64_t tokens = whole.tokens_N.size(0), count = tokens / num_parts;
  CHECK_EQ(count * num_parts, tokens);
  const int64_t begin = part * count, end = begin + count;
  for (Tensor* tensor : {&local.batch.tokens_N, &local.batch.targets_N, &local.batch.after_next_N})
    *tensor = tensor->narrow(0, begin, count).contiguous();
  local.batch.segment_lengths.clear();
  int64_t at = 0;
  for (int64_t length : whole.segment_lengths) {
    const int64_t first = std::max(at, begin), last = std::min(at + length, end);
    if (first < last) {
      local.batch.segment_lengths.push_back(last - first);
      local.batch.segment_positions.push_back(first - at);
    }
    at += length;
  }
  const auto share = [](const Tensor& mine, const Tensor& all) {
    const double total = num_targets(all);
    return total > 0 ? num_targets(mine) / total : 0.0;
  };
  local.share = {share(local.batch.targets_N, whole.targets_N),
                 share(local.batch.after_next_N, model::targets_after_next(whole)),
                 1 / static_cast<double>(num_parts)};
  return local;
}

}  // namespace fathom::pretrain
