#include "engine/draft_policy.h"

#include <algorithm>
#include <bit>

namespace fathom::engine {

void DraftRate::count(bool is_right) {
  num_right_ += is_right;
  if (++num_drafts_ < window_) return;
  num_right_ /= 2;
  num_drafts_ /= 2;
}

int64_t DraftCost::size_of(int64_t num_sequences) {
  return std::min<int64_t>(std::bit_width(static_cast<uint64_t>(num_sequences)), kSizes - 1);
}

void DraftCost::record_pass(int64_t num_sequences, bool checks_drafts, double seconds) {
  Step& step = steps_[size_of(num_sequences)];
  if (checks_drafts) {
    step.checking = seconds;
    ++step.num_checked;
    return;
  }
  if (step.num_checked > 0 && step.drafting > 0)
    step.costs[step.num_costs++ % kComparisons] = (step.checking + step.drafting) / seconds;
  step.num_checked = 0;
}

void DraftCost::record_drafting(int64_t num_sequences, double seconds) {
  steps_[size_of(num_sequences)].drafting = seconds;
}

bool DraftCost::wants_plain_pass(int64_t num_sequences) const {
  const Step& step = steps_[size_of(num_sequences)];
  return step.num_checked >= (step.num_costs < kComparisons ? 2 : 64);
}

double DraftCost::plain_passes(int64_t num_sequences) const {
  const Step& step = steps_[size_of(num_sequences)];
  if (step.num_costs < kFewest) return 0;
  std::array<double, kComparisons> costs = step.costs;
  const auto end = costs.begin() + std::min(step.num_costs, kComparisons);
  const auto middle = costs.begin() + (end - costs.begin()) / 2;
  std::nth_element(costs.begin(), middle, end);
  return *middle;
}

}  // namespace fathom::engine
