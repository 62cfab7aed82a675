#include "pretrain/trainer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/parallel.h"
#include "pretrain/test_data.h"

namespace fathom::pretrain {
namespace {

class TinyTrainer : public testing::Test {
 protected:
  void SetUp() override {
    write_synthetic_tokens(folder_ / "tokens");
    json_ = tiny_recipe(folder_);
    base::set_num_threads(1);  // more would only wait for one another
  }
  TokenRows rows(const std::string& split) const {
    return TokenRows(folder_ / "tokens", split, json_["training"]["sequence_length"]);
  }
  Trainer trainer() const { return Trainer(parse_recipe(json_, "test")); }

  std::filesystem::path folder_ = empty_folder(this_test());
  Json json_;
};

TEST_F(TinyTrainer, MicroBatchesAddUpToTheBatch) {
  json_["training"]["document_masking"] = false;  // every token has a target
  json_["training"]["bf16_matmuls"] = false;
  json_["training"]["balance_weight"] = 0.0;  // not linear in the batch
  std::vector<StepReport> reports;
  std::vector<double> after;
  for (int micro_batch_rows : {8, 4, 1}) {
    json_["training"]["micro_batch_rows"] = micro_batch_rows;
    Trainer t = trainer();
    reports.push_back(t.step(rows("train"), 0, 10));
    after.push_back(t.validate(rows("validation")).loss);
  }
  for (size_t i = 1; i < reports.size(); ++i) {
    EXPECT_NEAR(reports[i].loss, reports[0].loss, 1e-5);
    EXPECT_NEAR(reports[i].mtp_loss, reports[0].mtp_loss, 1e-5);
    EXPECT_NEAR(reports[i].gradient_norm, reports[0].gradient_norm, 1e-4);
    EXPECT_NEAR(reports[i].max_violation, reports[0].max_violation, 1e-9);
    EXPECT_NEAR(after[i], after[0], 1e-3);
  }
}

// A row's balance depends on the row alone, so rows may be split over passes (or machines) at will;
// that of a batch may not.
TEST_F(TinyTrainer, TheSequenceWiseBalanceLossAddsUpOverMicroBatches) {
  json_["training"]["document_masking"] = false;
  json_["training"]["bf16_matmuls"] = false;
  json_["training"]["balance_weight"] = 1.0;
  const auto difference = [&](const char* balance) {
    json_["training"]["balance"] = balance;
    std::vector<double> norms;
    for (int micro_batch_rows : {8, 1}) {
      json_["training"]["micro_batch_rows"] = micro_batch_rows;
      norms.push_back(trainer().step(rows("train"), 0, 10).gradient_norm);
    }
    return std::abs(norms[0] - norms[1]);
  };
  EXPECT_LT(difference("sequence"), 1e-4);
  EXPECT_GT(difference("batch"), 1e-3);
}

TEST_F(TinyTrainer, ASkippedStepChangesNothing) {
  json_["training"]["skip_steps"] = {2};
  Trainer t = trainer();
  EXPECT_FALSE(t.step(rows("train"), 0, 10).is_skipped);
  const auto before = t.model().weights.norm.clone();
  const double loss = t.validate(rows("validation")).loss;
  EXPECT_TRUE(t.step(rows("train"), 1, 10).is_skipped);
  EXPECT_TRUE(before.equal(t.model().weights.norm));
  EXPECT_EQ(t.validate(rows("validation")).loss, loss);
  EXPECT_FALSE(t.step(rows("train"), 2, 10).is_skipped);
}

TEST_F(TinyTrainer, TheMtpWeightScalesItsGradient) {
  json_["training"]["mtp_weight"] = 0.0;
  EXPECT_EQ(trainer().step(rows("train"), 0, 10).mtp_loss, 0);
  json_["training"]["mtp_weight"] = 0.3;
  const StepReport with = trainer().step(rows("train"), 0, 10);
  EXPECT_NEAR(with.mtp_loss, std::log(64), 0.3);
}

TEST_F(TinyTrainer, BiasesMoveByGammaTowardsIdleExpertsAndStayCentred) {
  Trainer t = trainer();
  t.step(rows("train"), 0, 10);
  const auto& bias = t.model().weights.layers[1].moe->e_score_correction_bias;
  EXPECT_FALSE(bias.requires_grad());
  EXPECT_GT(bias.abs().max().item<double>(), 1e-4);
  EXPECT_LT(bias.abs().max().item<double>(), 2.001e-3);
  EXPECT_NEAR(bias.sum().item<double>(), 0, 1e-7);
}

TEST_F(TinyTrainer, BiasesStayWhereTheyAreOverTheLastShareOfTheSteps) {
  json_["training"]["fixed_bias_fraction"] = 0.5;
  Trainer t = trainer();
  const auto& bias = t.model().weights.layers[1].moe->e_score_correction_bias;
  for (int64_t step = 0; step < 5; ++step) t.step(rows("train"), step, 10);
  const auto before = bias.clone();
  EXPECT_GT(before.abs().max().item<double>(), 1e-4);
  EXPECT_GT(t.step(rows("train"), 5, 10).max_violation, 0);
  EXPECT_TRUE(bias.equal(before));
}

TEST_F(TinyTrainer, TheMtpLossStopsWhereItsLateWeightIsZero) {
  json_["training"]["late_mtp_weight"] = 0.0;
  json_["training"]["late_mtp_fraction"] = 0.2;
  Trainer t = trainer();
  EXPECT_GT(t.step(rows("train"), 7, 10).mtp_loss, 0);
  EXPECT_EQ(t.step(rows("train"), 8, 10).mtp_loss, 0);
}

// Two layers with experts and MTP, which is not run: each bias follows its own layer's loads.
TEST_F(TinyTrainer, WithoutMtpTheOtherLayersBiasesMoveAlone) {
  json_["model"]["num_hidden_layers"] = 3;
  json_["training"].update(
      {{"mtp_weight", 0.0}, {"balance_weight", 0.0}, {"expert_bias_rate", 0.05}});
  Trainer t = trainer();
  const auto bias_of = [&](size_t layer) {
    return t.model().weights.layers[layer].moe->e_score_correction_bias;
  };
  bias_of(1)[0] = 1;  // every token's first choice in one layer
  t.step(rows("train"), 0, 10);
  const torch::Tensor mtp = t.model().weights.mtp->layer.moe->e_score_correction_bias;
  EXPECT_EQ(mtp.abs().max().item<double>(), 0);
  // The favourite loses, so that of the mean, which stays at 0, it is less than 3/4 away.
  EXPECT_LT(bias_of(1)[0].item<double>(), 0.74);
  EXPECT_GT(bias_of(2).abs().max().item<double>(), 0);
}

TEST_F(TinyTrainer, BalancingUndoesACollapsedRouter) {
  json_["training"]["balance_weight"] = 0.0;
  json_["training"]["mtp_weight"] = 0.0;
  std::vector<double> violation;
  for (double rate : {0.0, 0.05}) {
    json_["training"]["expert_bias_rate"] = rate;
    Trainer t = trainer();
    torch::Tensor bias = t.model().weights.layers[1].moe->e_score_correction_bias;
    bias[0] = 1;  // every token's first choice: twice the mean load
    for (int64_t step = 0; step < 20; ++step)
      violation.push_back(t.step(rows("train"), step, 20).max_violation);
  }
  EXPECT_EQ(violation[0], 1);
  EXPECT_EQ(violation[19], 1);
  EXPECT_LT(violation[39], 0.7);
}

TEST_F(TinyTrainer, ValidationLeavesNoTrace) {
  Trainer t = trainer();
  t.step(rows("train"), 0, 10);
  const double first = t.validate(rows("validation")).loss;
  EXPECT_EQ(t.validate(rows("validation")).loss, first);
  EXPECT_FALSE(t.model().weights.embed_tokens.grad().defined());
}

}  // namespace
}  // namespace fathom::pretrain
