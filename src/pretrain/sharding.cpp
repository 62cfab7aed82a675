#include "pretrain/sharding.h"

#include <algorithm>
#include <numeric>

namespace fathom::pretrain {
namespace {

using torch::Tensor;

// What one message may hold: the copies that it takes are no larger than a few times this.
constexpr int64_t kMessageElements = int64_t{8} << 20;

// Marked tensors in bunches of one message each.
std::vector<std::vector<OwnedTensor>> bunches(std::span<const OwnedTensor> tensors,
                                              const std::vector<bool>& is_marked) {
  std::vector<std::vector<OwnedTensor>> result;
  int64_t num_elements = kMessageElements;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (!is_marked[i]) continue;
    if (num_elements >= kMessageElements) {
      result.emplace_back();
      num_elements = 0;
    }
    result.back().push_back(tensors[i]);
    num_elements += tensors[i].tensor->numel();
  }
  for (auto& bunch : result)
    std::stable_sort(bunch.begin(), bunch.end(),
                     [](const OwnedTensor& a, const OwnedTensor& b) { return a.owner < b.owner; });
  return result;
}

Tensor flat_gradient(const Tensor& tensor) {
  const Tensor& gradient = tensor.grad();
  return gradient.defined() ? gradient.reshape({-1}) : torch::zeros({tensor.numel()});
}

void sum_bunch(const std::vector<OwnedTensor>& bunch, const model::RankGroup& ranks) {
  std::vector<Tensor> gradients;
  std::vector<int64_t> counts(ranks.size());
  for (const auto& [tensor, owner] : bunch) {
    gradients.push_back(flat_gradient(*tensor));
    counts[owner] += tensor->numel();
  }
  const Tensor sum = ranks.reduce_scatter(torch::cat(gradients), counts);
  int64_t begin = 0;
  for (const auto& [tensor, owner] : bunch) {
    tensor->mutable_grad() = Tensor();
    if (owner != ranks.rank()) continue;
    // A copy, so that the message's memory can go.
    tensor->mutable_grad() = sum.narrow(0, begin, tensor->numel()).clone().view(tensor->sizes());
    begin += tensor->numel();
  }
}

void share_bunch(const std::vector<OwnedTensor>& bunch, const model::RankGroup& ranks) {
  for (int root = 0; root < ranks.size(); ++root) {
    std::vector<Tensor> values;
    for (const auto& [tensor, owner] : bunch)
      if (owner == root) values.push_back(tensor->detach());
    if (values.empty()) continue;
    std::vector<Tensor> flat;
    for (const Tensor& value : values) flat.push_back(value.reshape({-1}));
    Tensor message = torch::cat(flat);
    ranks.broadcast(message, root);
    if (root == ranks.rank()) continue;
    int64_t begin = 0;
    for (Tensor& value : values) {
      value.copy_(message.narrow(0, begin, value.numel()).view(value.sizes()));
      begin += value.numel();
    }
  }
}

}  // namespace

std::vector<int> balanced_owners(std::span<const int64_t> num_elements, int num_ranks) {
  std::vector<size_t> order(num_elements.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return num_elements[a] > num_elements[b]; });
  std::vector<int64_t> load(num_ranks);
  std::vector<int> owners(num_elements.size());
  for (size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    owners[i] = static_cast<int>(least - load.begin());
    *least += num_elements[i];
  }
  return owners;
}

std::vector<bool> sum_gradients(std::span<const OwnedTensor> tensors,
                                const model::RankGroup& ranks) {
  Tensor num_gradients = torch::zeros({std::ssize(tensors)}, torch::kInt);
  auto* const counts = num_gradients.data_ptr<int32_t>();
  for (size_t i = 0; i < tensors.size(); ++i) counts[i] = tensors[i].tensor->grad().defined();
  ranks.all_reduce(num_gradients);
  std::vector<bool> has_gradient(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) has_gradient[i] = counts[i] > 0;
  if (ranks.size() == 1) return has_gradient;
  for (const auto& bunch : bunches(tensors, has_gradient)) sum_bunch(bunch, ranks);
  return has_gradient;
}

void share_values(std::span<const OwnedTensor> tensors, const std::vector<bool>& is_marked,
                  const model::RankGroup& ranks) {
  if (ranks.size() == 1) return;
  for (const auto& bunch : bunches(tensors, is_marked)) share_bunch(bunch, ranks);
}

}  // namespace fathom::pretrain
