// Synthetic multi-key retrieval, for experiments with sparse attention: pairs of a key and a value
// strewn over a long text, then keys to be answered with their values. What an answer needs stands
// at any distance, so attention that drops it answers by chance.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "model/transformer.h"
#include "pretrain/recipe.h"

namespace fathom::pretrain {

struct RetrievalQuery {
  int64_t position = 0;  // of the key; the token after it is the answer
  int64_t distance = 0;  // from there back to the value in its pair
  int32_t value = 0;
};

struct RetrievalDocument {
  std::vector<int32_t> tokens;
  std::vector<RetrievalQuery> queries;
};

// As long as `text`, whose tokens lie between: BOS; num_pairs times "pair_token key value", each
// somewhere in its own stretch of the text; num_queries times "query_token key value" at the end,
// of so many different pairs. Keys are distinct; keys come from the lower half of the vocabulary's
// ordinary tokens, values from the upper. A function of its arguments alone.
RetrievalDocument make_retrieval_document(const RetrievalRecipe& recipe,
                                          const model::Config& config,
                                          std::span<const int64_t> text, uint64_t seed,
                                          uint64_t number);

// A folder of tokens as TokenRows reads it, with the text of `tokens` and so many documents, a row
// of training.sequence_length each, that they are retrieval.share of all training rows. The
// validation split is that of `tokens`: text alone. Does nothing where it was made from the same.
// Returns the folder, which lies beside `tokens`.
std::filesystem::path mix_with_retrieval(const Recipe& recipe, const std::filesystem::path& tokens);

// Documents that training never sees: text of the validation split, another stream of the seed.
std::vector<RetrievalDocument> held_out_documents(const Recipe& recipe,
                                                  const std::filesystem::path& tokens);

// Shares of queries whose best next token is the value, by the distance of its pair: beyond the
// top-k window, where only a selection can see it, and within.
struct RetrievalAccuracy {
  double beyond = 0, within = 0;
  int64_t num_beyond = 0, num_within = 0;
};
RetrievalAccuracy measure_retrieval(const model::Model& model,
                                    const std::vector<RetrievalDocument>& documents,
                                    const model::ForwardOptions& options);

}  // namespace fathom::pretrain
