// Holds this program against llama.cpp on one model: the same logits, then both clocks in one run.
// Built by bench/vs_llama.sh, which fetches llama.cpp's libraries and header.
#include <fmt/format.h>
#include <ggml-backend.h>
#include <llama.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <memory>
#include <set>

#include "base/json.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "bench/machine.h"
#include "model/checkpoint.h"
#include "model/gguf_export.h"

namespace fathom::bench {
namespace {

using torch::Tensor;

struct Options {
  std::filesystem::path model = "models/nano";
  std::filesystem::path libraries;  // folder of llama.cpp's shared libraries
  int64_t num_logit_tokens = 4096;
  std::vector<int64_t> depths = {0, 4096, 8192, 16384};
  int64_t prefill_tokens = 512;
  int64_t decode_tokens = 32;
  int repeats = 5;
  int num_threads = 2;
  double tolerance = 1e-3;
};

constexpr int64_t kChunk = 512;  // tokens at once, llama.cpp's default as well

// --- llama.cpp

struct LlamaDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
  void operator()(llama_context* context) const { llama_free(context); }
};

class LlamaModel {
 public:
  LlamaModel(const std::filesystem::path& gguf, const std::filesystem::path& libraries) {
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) fmt::print(stderr, "llama.cpp: {}", text);
        },
        nullptr);
    ggml_backend_load_all_from_path(libraries.c_str());
    llama_backend_init();
    model_.reset(llama_model_load_from_file(gguf.c_str(), llama_model_default_params()));
    if (!model_) fail("llama.cpp does not load {}", gguf.string());
  }
  llama_model* get() const { return model_.get(); }

 private:
  std::unique_ptr<llama_model, LlamaDeleter> model_;
};

// Watches llama.cpp choose its keys, and puts this program's choice in their place.
struct SelectionExchange {
  std::vector<Tensor> ours_NK;                 // per layer, i32, -1 where there are fewer keys
  int64_t position = 0;                        // of the first token of the chunk under way
  int64_t num_queries = 0, num_different = 0;  // queries; those with another set of keys
  // Of layer 0: a query, and a key that only one of the two chose.
  std::vector<std::pair<int64_t, int32_t>> disputed;

  static bool observe(ggml_tensor* tensor, bool ask, void* self) {
    int layer = 0;
    if (std::sscanf(tensor->name, "top_k-%d", &layer) != 1 ||
        tensor->name != fmt::format("top_k-{}", layer))  // views of it have longer names
      return !ask;
    if (!ask) static_cast<SelectionExchange*>(self)->exchange(layer, tensor);
    return true;
  }

  void exchange(int layer, ggml_tensor* tensor) {
    const int64_t keys = tensor->ne[0], queries = tensor->ne[1];
    std::vector<int32_t> theirs(keys * queries);
    ggml_backend_tensor_get(tensor, theirs.data(), 0, theirs.size() * sizeof(int32_t));
    for (int64_t n = 0; n < queries; ++n) {
      const int64_t query = position + n;
      const int32_t* ours = ours_NK[layer].data_ptr<int32_t>() + query * ours_NK[layer].size(1);
      int32_t* row = theirs.data() + n * keys;
      // Keys behind the query are masked on their side, and not there on ours.
      std::set<int32_t> left(ours, ours + std::min<int64_t>(query + 1, ours_NK[layer].size(1)));
      std::set<int32_t> right;
      std::copy_if(row, row + keys, std::inserter(right, right.end()),
                   [&](int32_t key) { return key <= query; });
      ++num_queries;
      if (left != right) {
        ++num_different;
        std::vector<int32_t> keys_of_one;
        std::set_symmetric_difference(left.begin(), left.end(), right.begin(), right.end(),
                                      std::back_inserter(keys_of_one));
        if (layer == 0)
          for (const int32_t key : keys_of_one) disputed.emplace_back(query, key);
      }
      std::fill(row, row + keys, *left.begin());
      std::copy(left.begin(), left.end(), row);
    }
    ggml_backend_tensor_set(tensor, theirs.data(), 0, theirs.size() * sizeof(int32_t));
  }
};

class LlamaSession {
 public:
  LlamaSession(const LlamaModel& model, int64_t context_tokens, ggml_type cache, int num_threads,
               SelectionExchange* exchange = nullptr)
      : exchange_(exchange) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(context_tokens);
    params.n_batch = params.n_ubatch = kChunk;
    params.n_threads = params.n_threads_batch = num_threads;
    params.type_k = params.type_v = cache;
    params.no_perf = true;
    // Its flash attention rounds an f32 cache to f16.
    if (cache == GGML_TYPE_F32) params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    if (exchange) {
      params.cb_eval = SelectionExchange::observe;
      params.cb_eval_user_data = exchange;
    }
    context_.reset(llama_init_from_model(model.get(), params));
    if (!context_) fail("llama.cpp makes no context of {} tokens", context_tokens);
    vocab_size_ = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  }

  // Runs the tokens behind those before; the logits of all of them, or of the last alone.
  Tensor run(const Tensor& tokens_T, bool all_logits) {
    const int64_t count = tokens_T.size(0);
    llama_batch batch = llama_batch_init(static_cast<int32_t>(count), 0, 1);
    batch.n_tokens = static_cast<int32_t>(count);
    for (int64_t i = 0; i < count; ++i) {
      batch.token[i] = static_cast<llama_token>(tokens_T[i].item<int64_t>());
      batch.pos[i] = static_cast<llama_pos>(position_ + i);
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = all_logits || i + 1 == count;
    }
    if (exchange_) exchange_->position = position_;
    const int status = llama_decode(context_.get(), batch);
    llama_batch_free(batch);
    if (status != 0) fail("llama_decode of {} tokens at {}: {}", count, position_, status);
    position_ += count;
    return torch::from_blob(llama_get_logits(context_.get()), {all_logits ? count : 1, vocab_size_})
        .clone();
  }

  void truncate(int64_t num_tokens) {
    llama_memory_seq_rm(llama_get_memory(context_.get()), 0, static_cast<llama_pos>(num_tokens),
                        -1);
    position_ = num_tokens;
  }

 private:
  std::unique_ptr<llama_context, LlamaDeleter> context_;
  SelectionExchange* exchange_;
  int64_t vocab_size_ = 0, position_ = 0;
};

// --- this program

class FathomSession {
 public:
  FathomSession(const model::Model& model, model::CacheFormat format)
      : model_(model), cache_(model.config, format) {}

  Tensor run(const Tensor& tokens_T, bool all_logits) {
    const int64_t count = tokens_T.size(0);
    const model::Segment segment{count, cache_.num_tokens(), &cache_};
    const auto options = model::serving_options(model_);
    Tensor hidden = model::forward(model_, tokens_T, {&segment, 1}, options);
    if (!all_logits) hidden = hidden.narrow(0, count - 1, 1);
    return model::logits(model_, hidden, options);
  }
  void truncate(int64_t num_tokens) { cache_.truncate(num_tokens); }

 private:
  const model::Model& model_;
  model::KvCache cache_;
};

// --- comparison

// Logits of every token, or, to fill the cache, none.
template <typename Session>
std::vector<Tensor> run_in_chunks(Session& session, const Tensor& tokens_T, bool all_logits) {
  std::vector<Tensor> logits;
  for (int64_t at = 0; at < tokens_T.size(0); at += kChunk) {
    const int64_t count = std::min(kChunk, tokens_T.size(0) - at);
    const Tensor chunk = session.run(tokens_T.narrow(0, at, count), all_logits);
    if (all_logits) logits.push_back(chunk);
  }
  return logits;
}

Tensor random_tokens(int64_t count, int64_t vocab_size) {
  torch::manual_seed(1);
  return torch::randint(vocab_size, {count}, torch::kLong);
}

Json compare_logits(const Tensor& ours_TV, const Tensor& theirs_TV) {
  const Tensor worst_T = std::get<0>((ours_TV - theirs_TV).abs().max(1));
  const Tensor p = torch::log_softmax(ours_TV, 1), q = torch::log_softmax(theirs_TV, 1);
  const Tensor kl_T = (p.exp() * (p - q)).sum(1);
  const Tensor same_T = ours_TV.argmax(1).eq(theirs_TV.argmax(1));
  return {{"tokens", ours_TV.size(0)},
          {"largest_difference", worst_T.max().item<double>()},
          {"median_difference", worst_T.median().item<double>()},
          {"logits_standard_deviation", ours_TV.std().item<double>()},
          {"largest_kl_nats", kl_T.max().item<double>()},
          {"same_best_token", same_T.to(torch::kFloat64).mean().item<double>()}};
}

// How far a disputed key's score lies at most from the lowest that was chosen, as a share of the
// query's largest score: 0 is a tie, 1e-6 what rounding makes of one.
double largest_gap(const model::LayerTrace& layer, const SelectionExchange& exchange) {
  double largest = 0;
  for (const auto& [query, key] : exchange.disputed) {
    const Tensor scores_S = layer.index_scores_NS[query].narrow(0, 0, query + 1);
    const Tensor chosen_K = scores_S.index_select(0, layer.topk_NK[query].to(torch::kLong));
    const double gap = std::abs(scores_S[key].item<float>() - chosen_K.min().item<float>());
    largest = std::max(largest, gap / scores_S.abs().max().item<float>());
  }
  return largest;
}

// Everything at f32 and on the same selection, so that what is compared is the arithmetic; the two
// selections are compared where nothing came before them, in layer 0.
Json compare(const model::Model& model, const LlamaModel& llama, const Options& options) {
  const Tensor tokens = random_tokens(options.num_logit_tokens, model.config.vocab_size);
  model::KvCache cache(model.config);
  const model::Segment segment{options.num_logit_tokens, 0, &cache};
  model::Trace trace;
  const Tensor ours =
      model::logits(model, model::forward(model, tokens, {&segment, 1}, {}, &trace), {});
  SelectionExchange exchange;
  for (const model::LayerTrace& layer : trace.layers) exchange.ours_NK.push_back(layer.topk_NK);
  LlamaSession theirs(llama, options.num_logit_tokens + kChunk, GGML_TYPE_F32, options.num_threads,
                      &exchange);
  Json result = compare_logits(ours, torch::cat(run_in_chunks(theirs, tokens, true)));
  result["selections"] = exchange.num_queries;
  result["selections_that_differ"] = exchange.num_different;
  result["largest_gap"] = largest_gap(trace.layers[0], exchange);
  return result;
}

template <typename Session>
double milliseconds(Session& session, const Tensor& tokens_T, int64_t depth, bool one_by_one) {
  session.truncate(depth);
  const base::Stopwatch watch;
  if (one_by_one)
    for (int64_t i = 0; i < tokens_T.size(0); ++i) session.run(tokens_T.narrow(0, i, 1), false);
  else
    session.run(tokens_T, false);
  const double total = watch.seconds() * 1e3;
  session.truncate(depth);
  return total / static_cast<double>(tokens_T.size(0));
}

struct Pair {
  double fathom_ms_per_token = 1e30, llama_ms_per_token = 1e30;
};

Json to_json(const Pair& pair) {
  return {{"fathom_ms_per_token", pair.fathom_ms_per_token},
          {"llama_ms_per_token", pair.llama_ms_per_token},
          {"times_faster", pair.llama_ms_per_token / pair.fathom_ms_per_token}};
}

// The two take turns, so that a busy moment of the machine meets both; the shortest of each counts.
Pair take_turns(FathomSession& ours, LlamaSession& theirs, const Tensor& tokens_T, int64_t depth,
                bool one_by_one, int repeats) {
  Pair best;
  for (int i = 0; i < repeats; ++i) {
    // The other's idle threads give up their cores within this time.
    ::usleep(100'000);
    best.fathom_ms_per_token =
        std::min(best.fathom_ms_per_token, milliseconds(ours, tokens_T, depth, one_by_one));
    ::usleep(100'000);
    best.llama_ms_per_token =
        std::min(best.llama_ms_per_token, milliseconds(theirs, tokens_T, depth, one_by_one));
  }
  return best;
}

Json measure_speed(const model::Model& model, const LlamaModel& llama, const Options& options) {
  const int64_t deepest = *std::max_element(options.depths.begin(), options.depths.end());
  const Tensor tokens = random_tokens(deepest + options.prefill_tokens, model.config.vocab_size);
  FathomSession ours(model, model::CacheFormat::kFP8);
  LlamaSession theirs(llama, deepest + 2 * kChunk, GGML_TYPE_F16, options.num_threads);
  Json rows = Json::array();
  int64_t filled = 0;
  for (const int64_t depth : options.depths) {
    const Tensor more = tokens.narrow(0, filled, depth - filled);
    run_in_chunks(ours, more, false);
    run_in_chunks(theirs, more, false);
    filled = depth;
    const Tensor next = tokens.narrow(0, depth, options.prefill_tokens);
    const Pair prefill = take_turns(ours, theirs, next, depth, false, options.repeats);
    const Pair decode = take_turns(ours, theirs, next.narrow(0, 0, options.decode_tokens), depth,
                                   true, options.repeats);
    rows.push_back({{"depth", depth}, {"prefill", to_json(prefill)}, {"decode", to_json(decode)}});
  }
  return rows;
}

// What rounding makes of a tie between two keys, as largest_gap() counts.
constexpr double kLargestGap = 1e-5;

// Exit code 1 where the logits are further apart than the tolerance, or the selections by more than
// rounding.
int run(const Options& options) {
  const torch::NoGradGuard no_grad;
  base::set_num_threads(options.num_threads);
  model::Model model = model::load_checkpoint(options.model);
  // Positions beyond the trained ones cost the same and must agree as well.
  model.config.max_position_embeddings = int64_t{1} << 20;
  const auto gguf = std::filesystem::temp_directory_path() / fmt::format("{}.gguf", ::getpid());
  model::export_gguf({.model = options.model, .out = gguf, .type = "f32"});
  const LlamaModel llama(gguf, options.libraries);
  std::filesystem::remove(gguf);  // stays mapped

  const Json comparison = compare(model, llama, options);
  const MachinePeaks peaks = measure_machine();
  const Json result = {{"at_f32", comparison},
                       {"tolerance", options.tolerance},
                       {"machine",
                        {{"threads", options.num_threads},
                         {"f32_gflop_per_s", peaks.f32_gflop_per_s},
                         {"read_gbyte_per_s", peaks.read_gbyte_per_s}}},
                       {"speed", measure_speed(model, llama, options)}};
  fmt::print("{}\n", result.dump(2));
  const bool agree = comparison["largest_difference"].get<double>() <= options.tolerance &&
                     comparison["largest_gap"].get<double>() <= kLargestGap;
  return agree ? 0 : 1;
}

}  // namespace
}  // namespace fathom::bench

int main(int argc, char** argv) {
  fathom::bench::Options options;
  CLI::App app("Fathom against llama.cpp: logits, prefill and decode");
  app.add_option("--model", options.model, "Model folder")->capture_default_str();
  app.add_option("--libraries", options.libraries, "Folder of llama.cpp's libraries")->required();
  app.add_option("--tokens", options.num_logit_tokens, "Tokens whose logits are compared")
      ->capture_default_str();
  app.add_option("--depths", options.depths, "Tokens in the cache when the clock starts")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--repeats", options.repeats, "Turns of each; the shortest counts")
      ->capture_default_str();
  app.add_option("--threads", options.num_threads, "Threads of each")->capture_default_str();
  app.add_option("--tolerance", options.tolerance, "Largest allowed difference of a logit")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    return fathom::bench::run(options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "vs_llama: {}\n", error.what());
    return 1;
  }
}
