// The processes that train one model together, and what they say to each other. Here, in the first
// chapter that has tensors, because the model's layers speak too: experts split over ranks exchange
// tokens, rows split over ranks exchange keys. Who the ranks are is pretrain/ranks' matter.
//
// c10d's Gloo underneath, over TCP. Every rank of a group calls the same functions in the same
// order with the same shapes. Sums add in the order of the ranks: same bits on every rank, and the
// same in every run of as many ranks.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "model/tensor.h"

namespace fathom::model {

// A rank has died, or has not answered in time. The text names it: "rank 1 of 2 is gone (...)".
class RankLost : public Error {
 public:
  using Error::Error;
};

struct RankGroupOptions {
  int rank = 0;
  int size = 1;
  std::string address = "127.0.0.1";  // where rank 0 waits for the others
  uint16_t port = 0;
  std::chrono::milliseconds timeout = std::chrono::minutes(10);  // for an answer
};

class RankGroup {
 public:
  // A single rank: everything below returns its own values at once.
  RankGroup() = default;
  // Waits until all ranks have come.
  static RankGroup join(const RankGroupOptions& options);
  // The group of some of these ranks, this one among them; `members` ascend. All ranks call it,
  // each for its own group, as often.
  RankGroup choose(const std::vector<int>& members) const;

  // The same ranks again, whose messages pass this group's without regard to their order: for a
  // thread of its own. All ranks call it, in the same order as choose. It does not find out which
  // rank is lost: some may be busy elsewhere.
  RankGroup beside(const std::string& name) const;

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool is_first() const { return rank_ == 0; }

  // Sum over the ranks, in place. Any dtype that c10d sums.
  void all_reduce(torch::Tensor x) const;
  // Rank `root`'s values, in place.
  void broadcast(torch::Tensor x, int root) const;
  // [size * M, ...] from [M, ...], in the order of the ranks.
  torch::Tensor all_gather(const torch::Tensor& x) const;
  // Rows that each rank holds for each: send_counts[r] rows go to rank r, receive_counts[r] come
  // from it, in the order of the ranks. x: [sum of send_counts, D].
  torch::Tensor all_to_all(const torch::Tensor& x, std::span<const int64_t> send_counts,
                           std::span<const int64_t> receive_counts) const;
  // The sum over the ranks of x's part of this rank: counts[r] rows belong to rank r.
  torch::Tensor reduce_scatter(const torch::Tensor& x, std::span<const int64_t> counts) const;
  void barrier() const;
  // The first rank works, however long, while the others wait.
  void after_first(const std::string& name, const std::function<void()>& work) const;

 private:
  struct Connection;  // keeps c10d's headers out of this one
  template <typename Call>
  void wait_for(const Call& call) const;
  [[noreturn]] void fail_as_lost(const std::string& reason) const;

  int rank_ = 0;
  int size_ = 1;
  std::shared_ptr<Connection> connection_;
};

}  // namespace fathom::model
