#include "pretrain/division.h"

#include <algorithm>
#include <set>
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

void check_ranks(const Ranks& ranks, const Recipe& recipe) {
  const int64_t size = ranks.all.size();
  for (const auto& [name, count] : {std::pair("--sequence-parallel", ranks.sequence_parallel),
                                    std::pair("--expert-parallel", ranks.expert_parallel)})
    if (size % count != 0)
      fail("{} is {} of {} ranks; expected a divisor of their number", name, count, size);
  if (recipe.training.sequence_length % ranks.sequence_parallel != 0)
    fail("training.sequence_length is {}; with --sequence-parallel {} it must be a multiple of {}",
         recipe.training.sequence_length, ranks.sequence_parallel, ranks.sequence_parallel);
  if (recipe.stage == Stage::kMtp && ranks.sequence_parallel > 1)
    fail(
        "--sequence-parallel is {}; the mtp stage, which holds a token's guess against the next "
        "token's, needs whole rows on each rank",
        ranks.sequence_parallel);
  if (recipe.model.n_routed_experts % ranks.expert_parallel != 0)
    fail("model.n_routed_experts is {}; with --expert-parallel {} it must be a multiple of {}",
         recipe.model.n_routed_experts, ranks.expert_parallel, ranks.expert_parallel);
}

StepShare Division::share_of(int64_t total_micro_batches) const {
  StepShare share{.total_micro_batches = total_micro_batches};
  int64_t streams_per_batch = 1;
  const int64_t rows_among = num_streams / total_micro_batches;
  if (rows_among > 1 && num_streams % total_micro_batches == 0 &&
      micro_batch_rows % rows_among == 0)
    streams_per_batch = rows_among;
  share.num_micro_batches =
      (total_micro_batches * streams_per_batch + num_streams - 1) / num_streams;
  share.first_micro_batch = stream / streams_per_batch * share.num_micro_batches;
  share.num_parts = streams_per_batch * sequence_parallel;
  share.part = all.rank() % share.num_parts;
  return share;
}

Division divide(const Ranks& ranks, const Recipe& recipe) {
  check_ranks(ranks, recipe);
  const TrainingRecipe& t = recipe.training;
  Division division;
  division.all = ranks.all;
  division.sequence_parallel = ranks.sequence_parallel;
  division.micro_batch_rows = t.micro_batch_rows;
  const int64_t streams = division.num_streams = ranks.all.size() / ranks.sequence_parallel;
  division.stream = ranks.all.rank() / ranks.sequence_parallel;
  const int64_t batches = t.batch_rows / t.micro_batch_rows;
  const StepShare full = division.share_of(batches);
  // Ranks may have nothing to do while the batch grows, not for the rest of the run.
  if (full.num_micro_batches * streams * ranks.sequence_parallel != batches * full.num_parts)
    fail(
        "training.batch_rows = {} in micro-batches of {} rows do not divide over {} ranks; choose "
        "batch_rows and micro_batch_rows so that each gets as many rows",
        t.batch_rows, t.micro_batch_rows, streams);
  const auto group = [&](int64_t size) {
    return ranks.all.choose(neighbours(ranks.all.rank() / size * size, size));
  };
  const model::RankGroup experts = group(ranks.expert_parallel);
  const model::RankGroup sequence = group(ranks.sequence_parallel);
  std::set<int64_t> parts = {ranks.sequence_parallel};
  const int64_t first_rows = t.first_batch_rows > 0 ? t.first_batch_rows : t.batch_rows;
  for (int64_t count = first_rows / t.micro_batch_rows; count <= batches; ++count)
    parts.insert(division.share_of(count).num_parts);
  for (int64_t count : parts) division.distributions[count] = {group(count), experts, sequence};
  return division;
}

namespace {

// What of each length, one behind another, lies within [begin, end); 0 where nothing does.
std::vector<int64_t> lengths_within(const std::vector<int64_t>& lengths, int64_t begin,
                                    int64_t end) {
  std::vector<int64_t> result;
  int64_t at = 0;
  for (int64_t length : lengths) {
    const int64_t first = std::max(at, begin), last = std::min(at + length, end);
    result.push_back(std::max<int64_t>(last - first, 0));
    at += length;
  }
  return result;
}

}  // namespace

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
  local.batch.sequence_lengths = lengths_within(whole.sequence_lengths, begin, end);
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
