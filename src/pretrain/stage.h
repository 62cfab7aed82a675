// The stages of the report's training, each of which begins with the model that the one before
// left: dense pre-training and context extension (report of V3, sections 4.2 and 4.3), the
// indexer's dense warm-up and sparse training (report of V3.2, section 2.1.1). And one more, which
// the reports do not have: the MTP layer alone, fitted to what the trained model itself predicts,
// so that its drafts are right more often.
#pragma once

#include <string_view>
#include <utility>

namespace fathom::pretrain {

enum class Stage { kDense, kExtend, kWarmup, kSparse, kMtp };
inline constexpr std::pair<std::string_view, Stage> kStages[] = {{"dense", Stage::kDense},
                                                                 {"extend", Stage::kExtend},
                                                                 {"warmup", Stage::kWarmup},
                                                                 {"sparse", Stage::kSparse},
                                                                 {"mtp", Stage::kMtp}};

inline std::string_view name_of(Stage stage) { return kStages[static_cast<int>(stage)].first; }

// All of them in the warm-up and the sparse stage, MTP's in its own.
inline bool trains_indexer(Stage stage) {
  return stage == Stage::kWarmup || stage == Stage::kSparse || stage == Stage::kMtp;
}

inline bool trains_sparsely(Stage stage) { return stage == Stage::kSparse || stage == Stage::kMtp; }

}  // namespace fathom::pretrain
