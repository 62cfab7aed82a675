// When MTP's drafts pay. A draft costs MTP's layer, a guess and one row more of the next forward
// pass; where it is right it saves a pass. How often it is right depends on the text and its
// sampling, what it costs on the model, the machine and how many sequences decode: both are
// measured while the engine runs, and neither changes a token.
#pragma once

#include <array>
#include <cstdint>

namespace fathom::engine {

// How many drafts of late were right.
class DraftRate {
 public:
  // Of about the last `window` drafts; at first as if `share` of a few had been.
  explicit DraftRate(double window = 64, double share = 1)
      : window_(window), num_right_(share * kFirst) {}

  void count(bool is_right);
  double share() const { return num_right_ / num_drafts_; }
  bool is_known() const { return num_drafts_ >= 2 * kFirst; }

 private:
  static constexpr double kFirst = 16;
  double window_;
  double num_right_, num_drafts_ = kFirst;
};

// What drafts cost, by how many sequences decode (from one power of two to the next). A pass
// without them is held against the one before it with them, so that a machine whose speed changes
// misleads little; the median of the last few such comparisons counts.
class DraftCost {
 public:
  // A forward pass and its sampling, of sequences that decode: all with a draft to check, or none.
  void record_pass(int64_t num_sequences, bool checks_drafts, double seconds);
  // MTP's layer and guesses, for all of them.
  void record_drafting(int64_t num_sequences, double seconds);

  // Whether the next pass should check no drafts, for comparison. Those that are made for it are
  // lost, so it is seldom but for the first few.
  bool wants_plain_pass(int64_t num_sequences) const;

  // How many plain passes take as long as one that checks drafts and the drafting beside it: drafts
  // pay where more tokens than that come of it. 0 while it is not known.
  double plain_passes(int64_t num_sequences) const;

 private:
  static constexpr int64_t kComparisons = 9, kFewest = 5;
  struct Step {
    double checking = 0, drafting = 0;  // seconds, the latest
    int64_t num_checked = 0;            // passes since the last plain one
    std::array<double, kComparisons> costs = {};
    int64_t num_costs = 0;
  };
  static constexpr int64_t kSizes = 12;
  static int64_t size_of(int64_t num_sequences);

  std::array<Step, kSizes> steps_ = {};
};

}  // namespace fathom::engine
