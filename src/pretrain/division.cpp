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

Division divide(const model::RankGroup& all, const TrainingRecipe& recipe) {
  Division division;
  division.all = all;
  division.total_micro_batches = recipe.batch_rows / recipe.micro_batch_rows;
  const int64_t ranks = all.size(), batches = division.total_micro_batches;
  if (batches % ranks == 0) {
    division.num_micro_batches = batches / ranks;
    division.first_micro_batch = all.rank() * division.num_micro_batches;
    return division;
  }
  division.num_parts = ranks / batches;
  if (ranks % batches != 0 || recipe.micro_batch_rows % division.num_parts != 0)
    fail(
        "training.batch_rows = {} in micro-batches of {} rows do not divide over {} ranks; choose "
        "batch_rows and micro_batch_rows so that each rank gets as many rows",
        recipe.batch_rows, recipe.micro_batch_rows, ranks);
  division.first_micro_batch = all.rank() / division.num_parts;
  division.part = all.rank() % division.num_parts;
  division.distribution.batch =
      all.choose(neighbours(all.rank() - division.part, division.num_parts));
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
    if (first < last) local.batch.segment_lengths.push_back(last - first);
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
