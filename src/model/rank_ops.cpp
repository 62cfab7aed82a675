#include "model/rank_ops.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/check_macros.h"  // LibTorch's headers define their own

namespace fathom::model::ops {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Keeps the ranks alive for backward; autograd saves tensors and plain values only.
struct SavedRanks : torch::CustomClassHolder {
  explicit SavedRanks(RankGroup group) : ranks(std::move(group)) {}
  RankGroup ranks;
};

struct ExchangeFunction : Function<ExchangeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const RankGroup& ranks,
                        const RowExchange& counts) {
    ctx->saved_data["ranks"] = c10::IValue::make_capsule(c10::make_intrusive<SavedRanks>(ranks));
    ctx->saved_data["send"] = counts.send_counts;
    ctx->saved_data["receive"] = counts.receive_counts;
    return ranks.all_to_all(x, counts.send_counts, counts.receive_counts);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->saved_data["ranks"].toCapsule();
    const auto send = ctx->saved_data["send"].toIntVector();
    const auto receive = ctx->saved_data["receive"].toIntVector();
    const RankGroup& ranks = static_cast<const SavedRanks&>(*saved).ranks;
    return {ranks.all_to_all(grads[0].contiguous(), receive, send), Tensor(), Tensor()};
  }
};

struct GatherFunction : Function<GatherFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const RankGroup& ranks) {
    ctx->saved_data["ranks"] = c10::IValue::make_capsule(c10::make_intrusive<SavedRanks>(ranks));
    return ranks.all_gather(x);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->saved_data["ranks"].toCapsule();
    const RankGroup& ranks = static_cast<const SavedRanks&>(*saved).ranks;
    const std::vector<int64_t> counts(ranks.size(), grads[0].size(0) / ranks.size());
    return {ranks.reduce_scatter(grads[0].contiguous(), counts), Tensor()};
  }
};

}  // namespace

Tensor exchange_rows(const Tensor& x, const RankGroup& ranks, const RowExchange& counts) {
  if (ranks.size() == 1) return x;
  return ExchangeFunction::apply(x.contiguous(), ranks, counts);
}

Tensor gather_rows(const Tensor& x, const RankGroup& ranks) {
  if (ranks.size() == 1) return x;
  return GatherFunction::apply(x.contiguous(), ranks);
}

}  // namespace fathom::model::ops
