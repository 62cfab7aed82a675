// Ranks as threads of this process: each has connections of its own.
#include "model/rank_group.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <thread>

#include "base/free_port.h"
#include "model/distribution.h"
#include "model/moe.h"
#include "model/rank_ops.h"
#include "model/test_config.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// Runs body(ranks) on `size` ranks and returns the errors' texts by rank.
template <typename Body>
std::vector<std::string> on_ranks(int size, const Body& body, double timeout_seconds = 20) {
  std::vector<std::string> errors(size);
  std::vector<std::thread> threads;
  const uint16_t port = base::free_port();
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        body(RankGroup::join(
            {rank, size, "127.0.0.1", port,
             std::chrono::milliseconds(static_cast<int64_t>(1e3 * timeout_seconds))}));
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  for (auto& thread : threads) thread.join();
  return errors;
}

// Rank r's tensor in these tests: r, r + 10, r + 20, ...
Tensor numbers(const RankGroup& ranks, int64_t count) {
  return torch::arange(count).to(torch::kFloat32) * 10 + ranks.rank();
}

template <typename Body>
void expect_on_ranks(int size, const Body& body) {
  for (const std::string& error : on_ranks(size, body)) EXPECT_EQ(error, "");
}

// Two threads a rank, which speak in another order on each.
TEST(RankGroup, AGroupBesideAnotherHasMessagesOfItsOwn) {
  expect_on_ranks(2, [](const RankGroup& ranks) {
    const RankGroup beside = ranks.beside("test");
    Tensor first = numbers(ranks, 2), second = numbers(ranks, 3);
    std::thread other;
    if (ranks.is_first()) {
      other = std::thread([&] { beside.all_reduce(second); });
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      ranks.all_reduce(first);
    } else {
      ranks.all_reduce(first);
      other = std::thread([&] { beside.all_reduce(second); });
    }
    other.join();
    EXPECT_TRUE(first.equal(torch::tensor({1.0f, 21.0f})));
    EXPECT_TRUE(second.equal(torch::tensor({1.0f, 21.0f, 41.0f})));
  });
}

TEST(RankGroup, CollectivesOfThreeRanks) {
  expect_on_ranks(3, [](const RankGroup& ranks) {
    Tensor sum = numbers(ranks, 4);
    ranks.all_reduce(sum);
    EXPECT_TRUE(sum.equal(torch::tensor({3.0f, 33.0f, 63.0f, 93.0f})));
    Tensor second = numbers(ranks, 2);
    ranks.broadcast(second, 1);
    EXPECT_TRUE(second.equal(torch::tensor({1.0f, 11.0f})));
    EXPECT_TRUE(ranks.all_gather(numbers(ranks, 1)).equal(torch::tensor({0.0f, 1.0f, 2.0f})));
    // Rank r sends r + s rows to rank s.
    std::vector<int64_t> counts;
    for (int other = 0; other < 3; ++other) counts.push_back(ranks.rank() + other);
    const Tensor rows = torch::full({3 * ranks.rank() + 3, 2}, ranks.rank(), torch::kLong);
    const Tensor got = ranks.all_to_all(rows, counts, counts);
    int64_t at = 0;
    for (int other = 0; other < 3; ++other)
      for (int64_t i = 0; i < counts[other]; ++i) EXPECT_EQ(got[at++][1].item<int64_t>(), other);
    const Tensor part = ranks.reduce_scatter(numbers(ranks, 6), std::vector<int64_t>{1, 0, 5});
    const std::vector<Tensor> expected = {torch::tensor({3.0f}), torch::empty({0}),
                                          torch::tensor({33.0f, 63.0f, 93.0f, 123.0f, 153.0f})};
    EXPECT_TRUE(part.equal(expected[ranks.rank()])) << part;
    ranks.barrier();
  });
}

TEST(RankGroup, SomeRanksAsAGroup) {
  expect_on_ranks(4, [](const RankGroup& ranks) {
    const std::vector<int> members =
        ranks.rank() % 2 == 0 ? std::vector<int>{0, 2} : std::vector<int>{1, 3};
    const RankGroup half = ranks.choose(members);
    EXPECT_EQ(half.size(), 2);
    EXPECT_EQ(half.rank(), ranks.rank() / 2);
    Tensor sum = numbers(ranks, 1);
    half.all_reduce(sum);
    EXPECT_EQ(sum.item<float>(), ranks.rank() % 2 == 0 ? 2 : 4);
    EXPECT_EQ(ranks.choose({ranks.rank()}).size(), 1);
    const RankGroup again = ranks.choose(members);  // the same ranks, connections of their own
    again.all_reduce(sum);
    EXPECT_EQ(sum.item<float>(), ranks.rank() % 2 == 0 ? 4 : 8);
  });
}

TEST(RankGroup, TheFirstWorksWhileTheOthersWait) {
  std::atomic<bool> is_done = false;
  expect_on_ranks(3, [&](const RankGroup& ranks) {
    ranks.after_first("work", [&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      is_done = true;
    });
    EXPECT_TRUE(is_done);
  });
}

TEST(RankGroup, NamesTheRankThatWentAway) {
  const auto errors = on_ranks(3, [](const RankGroup& ranks) {
    ranks.barrier();
    if (ranks.rank() == 1) return;
    for (int i = 0; i < 3; ++i) ranks.barrier();
  });
  EXPECT_EQ(errors[1], "");
  for (int rank : {0, 2})
    EXPECT_TRUE(errors[rank].starts_with("rank 1 of 3 is gone (")) << errors[rank];
}

TEST(RankGroup, ARankThatDoesNotAnswerIsGone) {
  const auto errors = on_ranks(
      2,
      [](const RankGroup& ranks) {
        if (ranks.rank() == 0) ranks.barrier();
        std::this_thread::sleep_for(std::chrono::seconds(ranks.rank() * 12));
      },
      4);  // seconds: meeting each other takes its time, too, on a busy machine
  EXPECT_TRUE(errors[0].starts_with("rank 1 of 2 is gone (Timed out waiting 4000ms")) << errors[0];
}

// The gradient of a sum over all ranks of weight * (rows that this rank has afterwards)^2.
template <typename Op>
Tensor gradient_of(const Tensor& x, const Tensor& weight, const Op& op) {
  Tensor input = x.clone().requires_grad_(true);
  (weight * op(input).square()).sum().backward();
  return input.grad();
}

TEST(RankOps, GatheredRowsGetTheGradientsOfAllRanks) {
  expect_on_ranks(3, [](const RankGroup& ranks) {
    const Tensor x = numbers(ranks, 4).view({2, 2});
    const Tensor weight = torch::full({6, 2}, 1.0f + ranks.rank());
    const Tensor gradient =
        gradient_of(x, weight, [&](const Tensor& input) { return ops::gather_rows(input, ranks); });
    EXPECT_TRUE(gradient.equal(2 * x * (1 + 2 + 3))) << gradient;
  });
}

TEST(RankOps, ExchangedRowsGetTheirGradientsBack) {
  expect_on_ranks(2, [](const RankGroup& ranks) {
    // Rank 0 keeps one row and sends two; rank 1 sends one and keeps none.
    const ops::RowExchange rows =
        ranks.rank() == 0 ? ops::RowExchange{{1, 2}, {1, 1}} : ops::RowExchange{{1, 0}, {2, 0}};
    const Tensor x = numbers(ranks, ranks.rank() == 0 ? 6 : 2).view({-1, 2});
    const Tensor weight = torch::full({2, 1}, 1.0f + ranks.rank());
    const Tensor gradient = gradient_of(
        x, weight, [&](const Tensor& input) { return ops::exchange_rows(input, ranks, rows); });
    const Tensor factor =
        ranks.rank() == 0 ? torch::tensor({{1.0f}, {2.0f}, {2.0f}}) : torch::tensor({{1.0f}});
    EXPECT_TRUE(gradient.equal(2 * x * factor)) << gradient;
  });
}

// Balance of the sequences of a batch, or a part of it, and the router's gradient by it.
std::pair<Tensor, Tensor> balance_of_sequences(const Tensor& x_ND, const ForwardOptions& options) {
  const Config config = tiny_config();
  const int64_t experts = config.n_routed_experts;
  MoeWeights weights;
  weights.gate.weight = torch::arange(experts * config.hidden_size).to(torch::kFloat32).sin();
  weights.gate.weight = weights.gate.weight.view({experts, -1}).set_requires_grad(true);
  weights.e_score_correction_bias = torch::zeros({experts});
  const Tensor balance = route(weights, config, x_ND, options).balance;
  balance.backward();
  return {balance.detach(), weights.gate.weight.grad()};
}

TEST(RankOps, TheBalanceOfASequenceCountsTheLoadsOfAllItsRanks) {
  const int64_t width = tiny_config().hidden_size;
  const Tensor x = (torch::arange(30 * width).to(torch::kFloat32) * 0.7).cos().view({30, width});
  const std::vector<int64_t> lengths = {10, 17, 3}, parts[] = {{10, 5, 0}, {0, 12, 3}};
  const auto whole = balance_of_sequences(x, {.balance_sequences = lengths});
  expect_on_ranks(2, [&](const RankGroup& ranks) {
    const Distribution distribution{ranks, {}, {}};
    const auto part = balance_of_sequences(
        x.narrow(0, 15 * ranks.rank(), 15),
        {.balance_sequences = parts[ranks.rank()], .distribution = &distribution});
    const Tensor balance = part.first / 2, gradient = part.second / 2;
    ranks.all_reduce(balance);
    ranks.all_reduce(gradient);
    EXPECT_TRUE(balance.allclose(whole.first, 1e-5, 1e-6)) << balance << whole.first;
    EXPECT_TRUE(gradient.allclose(whole.second, 1e-4, 1e-6));
  });
}

}  // namespace
}  // namespace fathom::model
