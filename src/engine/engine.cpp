#include "engine/engine.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/parallel.h"
#include "base/progress.h"
#include "engine/draft_policy.h"
#include "engine/prefix_cache.h"
#include "engine/scheduler.h"
#include "kernels/softmax_row.h"
#include "model/transformer.h"

namespace fathom::engine {
namespace {

using torch::Tensor;

// One forward pass: what each sequence puts in, and the rows whose logits are wanted.
struct Batch {
  std::vector<Sequence*> sequences;
  std::vector<model::Segment> segments;
  std::vector<int64_t> tokens;
  std::vector<int64_t> logit_rows;

  bool is_prompt(size_t i) const {
    return segments[i].position < std::ssize(sequences[i]->request.prompt);
  }
  bool has_draft(size_t i) const { return !is_prompt(i) && segments[i].num_tokens > 1; }
};

Batch assemble(const std::vector<Sequence*>& sequences) {
  Batch batch{sequences, {}, {}, {}};
  for (Sequence* sequence : sequences) {
    const int64_t at = sequence->cache.num_tokens(), count = sequence->num_scheduled;
    batch.segments.push_back({count, at, &sequence->cache});
    for (int64_t position = at; position < at + count; ++position) {
      const bool is_known = position < std::ssize(sequence->tokens);
      batch.tokens.push_back(is_known ? sequence->tokens[position] : *sequence->draft);
      if (position + 1 >= std::ssize(sequence->tokens))
        batch.logit_rows.push_back(std::ssize(batch.tokens) - 1);
    }
  }
  return batch;
}

Tensor index_tensor(std::vector<int64_t>& values) {
  return torch::from_blob(values.data(), {std::ssize(values)}, torch::kLong);
}

void finish(Sequence& sequence, RequestEvent event) {
  event.is_finished = true;
  sequence.on_event(event);
}

void fail_sequence(Sequence& sequence, FinishReason reason, const std::string& error) {
  finish(sequence, {.finish_reason = reason, .error = error});
  sequence.on_event = nullptr;  // marks it for removal
  sequence.has_failed = true;
}

// Rows [first, first + count) of the batch for the sequence's next record.
void keep_routing(const model::ForwardStatistics& experts, int64_t first, int64_t count,
                  Sequence& sequence) {
  if (!sequence.request.record) return;
  for (int64_t row = first; row < first + count; ++row) {
    for (const Tensor& index_NK : experts.index_NK) {
      const int64_t width = index_NK.size(1);
      const int64_t* ids = index_NK.data_ptr<int64_t>() + row * width;
      for (int64_t k = 0; k < width; ++k)
        sequence.routed_experts.push_back(static_cast<int32_t>(ids[k]));
    }
  }
}

// The sequence's next token by these logits, which its constraint has not accepted yet.
Draw draw_token(const Sequence& sequence, std::span<const float> logits, base::Random& random,
                bool with_mask) {
  const Request& request = sequence.request;
  if (!adjusts_logits(request.sampling) && !request.constraint)
    return draw(logits, request.sampling, random, with_mask);
  std::vector<float> adjusted(logits.begin(), logits.end());
  if (adjusts_logits(request.sampling))
    adjust_logits(request.sampling, sequence.generated(), adjusted);
  if (request.constraint) keep_allowed(request.constraint->allowed(), adjusted);
  return draw(adjusted, request.sampling, random, with_mask);
}

// A sequence's next token, or why it must fail.
struct Choice {
  Draw drawn = {};
  std::optional<std::string> error = {};  // why there is none
  FinishReason reason = FinishReason::kFailed;
};

Choice choose_token(Sequence& sequence, std::span<const float> logits) {
  if (!kernels::are_finite(logits.data(), std::ssize(logits)))
    return {.error =
                fmt::format("the logits of position {} are not finite; the weights are damaged",
                            sequence.tokens.size() - 1)};
  try {
    Draw drawn = draw_token(sequence, logits, sequence.random, sequence.request.record);
    if (sequence.request.constraint) sequence.request.constraint->accept(drawn.id);
    return {.drawn = std::move(drawn)};
  } catch (const std::exception& error) {  // of the request's own constraint
    return {.error = error.what(), .reason = FinishReason::kRefused};
  }
}

// What the token after the next will be if MTP's logits are right: drawn as that token will be,
// with the same random number, which is left for it. Two draws from distributions that differ
// little then mostly agree, where the likeliest token alone is right no more often than it is
// drawn. None where nothing can be drawn: the pass that draws the token itself will say why.
std::optional<int32_t> guess_token(const Sequence& sequence, std::span<const float> logits) {
  base::Random random = sequence.random;
  try {
    return draw_token(sequence, logits, random, false).id;
  } catch (const std::exception&) {
    return {};
  }
}

std::span<const float> row_of(const Tensor& logits_RV, int64_t row) {
  return {logits_RV.data_ptr<float>() + row * logits_RV.size(1),
          static_cast<size_t>(logits_RV.size(1))};
}

// Of each sequence the row of logits that its next token is drawn from; nothing while its prompt
// goes on.
std::vector<std::span<const float>> first_logits(const Batch& batch, const Tensor& logits_RV) {
  std::vector<std::span<const float>> rows(batch.sequences.size());
  int64_t row = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (batch.sequences[i]->is_prefilling()) continue;
    rows[i] = row_of(logits_RV, row);
    row += batch.has_draft(i) ? 2 : 1;
  }
  return rows;
}

// Sequences that one thread chooses for: fewer are not worth waking another.
constexpr int64_t kFewestChoices = 4;

}  // namespace

struct Engine::State {
  State(std::shared_ptr<const model::Model> model, EngineOptions options)
      : model(std::move(model)),
        options(options),
        forward(options.numerics == Numerics::kServed ? model::serving_options(*this->model)
                                                      : model::ForwardOptions{}),
        max_pages(
            options.cache_bytes /
            model::CacheLayout(model::config_of(*this->model), options.cache_format).page_bytes()) {
  }

  void run();
  void admit();
  void take_known_prefix(Sequence& sequence);
  void keep_pages(const Sequence& sequence);
  void make_room();
  void remove_ended();
  int64_t reserved_pages() const;
  void step(const std::vector<Sequence*>& sequences);
  void take_tokens(const Batch& batch, const Tensor& logits_RV,
                   const model::ForwardStatistics& experts, Statistics& step);
  void draft(const Batch& batch, const Tensor& hidden_ND);
  bool drafts_from_the_start();
  void weigh_drafts(const Batch& batch, double pass_seconds, double drafting_seconds);
  int64_t context_length() const {
    return std::min(model::config_of(*model).max_position_embeddings,
                    max_pages * kernels::kPageRows);
  }
  bool take_token(Sequence& sequence, std::span<const float> logits, Choice choice);
  void remove_cancelled();
  void fail_all(const std::string& error);

  const std::shared_ptr<const model::Model> model;
  const EngineOptions options;
  const model::ForwardOptions forward;
  const int64_t max_pages;
  mutable std::mutex mutex;  // guards what follows; `running`'s contents belong to the thread
  PrefixCache prefixes;
  std::condition_variable wake;
  std::deque<std::unique_ptr<Sequence>> waiting;
  std::vector<std::unique_ptr<Sequence>> running;
  std::vector<RequestId> cancelled;
  DraftCost draft_cost;
  DraftRate draft_rate{512};  // of all requests
  int64_t num_undrafted = 0;  // requests since one drafted
  RequestId next_id = 1;
  Statistics statistics;  // the totals; what is now is counted when asked for
  bool is_stopping = false;
  std::thread thread;
};

void Engine::State::run() {
  const torch::NoGradGuard no_grad;
  at::set_num_threads(1);  // this thread's: LibTorch's own sums would depend on OMP_NUM_THREADS
  while (true) {
    {
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] { return is_stopping || !waiting.empty() || !running.empty(); });
      if (is_stopping) break;
      remove_cancelled();
      admit();
      for (const auto& sequence : running)
        if (sequence->is_prefilling()) take_known_prefix(*sequence);
    }
    try {
      const auto sequences = schedule(running, options.max_batch_tokens, context_length());
      if (!sequences.empty()) step(sequences);
    } catch (const std::exception& error) {
      fail_all(error.what());
    }
    const std::scoped_lock lock(mutex);
    remove_ended();
  }
  const std::scoped_lock lock(mutex);
  for (auto& sequence : running) finish(*sequence, {.finish_reason = FinishReason::kCancelled});
  for (auto& sequence : waiting) finish(*sequence, {.finish_reason = FinishReason::kCancelled});
  running.clear();
  waiting.clear();
}

void Engine::State::remove_cancelled() {
  const auto cancel_in = [&](auto& sequences) {
    std::erase_if(sequences, [&](const std::unique_ptr<Sequence>& sequence) {
      if (std::find(cancelled.begin(), cancelled.end(), sequence->id) == cancelled.end())
        return false;
      finish(*sequence, {.finish_reason = FinishReason::kCancelled});
      keep_pages(*sequence);
      return true;
    });
  };
  if (cancelled.empty()) return;
  cancel_in(running);
  cancel_in(waiting);
  cancelled.clear();
  make_room();
}

int64_t Engine::State::reserved_pages() const {
  int64_t pages = 0;
  for (const auto& sequence : running) pages += sequence->num_pages;
  return pages;
}

// In the order of arrival: a large request is not overtaken for ever by small ones.
void Engine::State::admit() {
  while (!waiting.empty() && std::ssize(running) < options.max_running_requests &&
         reserved_pages() + waiting.front()->num_pages <= max_pages) {
    running.push_back(std::move(waiting.front()));
    waiting.pop_front();
    running.back()->drafts = drafts_from_the_start();
    running.back()->draft_rate = DraftRate(64, draft_rate.share());
    make_room();
  }
}

// What is known of the prompt by now and was not when its last chunk was computed: a request that
// came just before may have the same beginning.
void Engine::State::take_known_prefix(Sequence& sequence) {
  if (!options.keep_prefixes || sequence.request.record) return;
  const auto pages = prefixes.find(sequence.request.prompt);
  const int64_t num_known = std::ssize(pages) * kernels::kPageRows;
  if (num_known <= sequence.cache.num_tokens()) return;
  sequence.cache = model::KvCache(model::config_of(*model), options.cache_format);
  sequence.cache.share(pages);
  statistics.num_cached_tokens += num_known - sequence.num_cached_tokens;
  sequence.num_cached_tokens = num_known;
}

// For later requests, and for those that wait for this one's prompt.
void Engine::State::keep_pages(const Sequence& sequence) {
  if (!options.keep_prefixes || sequence.has_failed) return;
  // The last token was sampled, not computed.
  prefixes.insert({sequence.tokens.data(), static_cast<size_t>(sequence.cache.num_tokens())},
                  sequence.cache.pages());
}

// What is kept for later makes way for what runs.
void Engine::State::make_room() { prefixes.evict(max_pages - reserved_pages()); }

void Engine::State::remove_ended() {
  const auto has_ended = [](const auto& sequence) { return sequence->on_event == nullptr; };
  for (const auto& sequence : running)
    if (has_ended(sequence)) keep_pages(*sequence);
  if (std::erase_if(running, has_ended) > 0) make_room();
}

void Engine::State::step(const std::vector<Sequence*>& sequences) {
  const base::Stopwatch pass;
  Batch batch = assemble(sequences);
  const bool records = std::any_of(sequences.begin(), sequences.end(),
                                   [](const Sequence* s) { return s->request.record; });
  model::ForwardStatistics experts;
  const Tensor hidden = model::forward(*model, index_tensor(batch.tokens), batch.segments, forward,
                                       nullptr, records ? &experts : nullptr);
  Statistics step;
  for (size_t i = 0; i < sequences.size(); ++i)
    if (batch.is_prompt(i)) step.num_prompt_tokens += batch.segments[i].num_tokens;
  Tensor logits;
  if (!batch.logit_rows.empty()) {
    const Tensor rows = hidden.index_select(0, index_tensor(batch.logit_rows));
    logits = model::logits(*model, rows, forward);
  }
  take_tokens(batch, logits, experts, step);
  const double pass_seconds = pass.seconds();
  if (options.speculation != Speculation::kNone) draft(batch, hidden);
  if (options.speculation == Speculation::kWherePays)
    weigh_drafts(batch, pass_seconds, pass.seconds() - pass_seconds);
  const std::scoped_lock lock(mutex);
  for (size_t i = 0; i < sequences.size(); ++i)  // its logits were numbers: it is worth keeping
    if (batch.is_prompt(i) && !sequences[i]->is_prefilling()) keep_pages(*sequences[i]);
  statistics.num_prompt_tokens += step.num_prompt_tokens;
  statistics.num_generated_tokens += step.num_generated_tokens;
  statistics.num_drafted_tokens += step.num_drafted_tokens;
  statistics.num_accepted_tokens += step.num_accepted_tokens;
}

// A draft counts if it is the token that is sampled anyway: speculation changes no token.
void Engine::State::take_tokens(const Batch& batch, const Tensor& logits_RV,
                                const model::ForwardStatistics& experts, Statistics& step) {
  const std::vector<std::span<const float>> rows = first_logits(batch, logits_RV);
  std::vector<Choice> choices(batch.sequences.size());
  base::parallel_for(std::ssize(choices), kFewestChoices, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (!rows[i].empty()) choices[i] = choose_token(*batch.sequences[i], rows[i]);
  });
  int64_t first = 0;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    Sequence& sequence = *batch.sequences[i];
    const int64_t count = batch.segments[i].num_tokens;
    const bool has_draft = batch.has_draft(i);
    keep_routing(experts, first, count - has_draft, sequence);
    first += count;
    if (sequence.is_prefilling()) continue;  // its prompt goes on
    step.num_drafted_tokens += has_draft;
    step.num_generated_tokens += take_token(sequence, rows[i], std::move(choices[i]));
    const bool is_right = has_draft && sequence.tokens.back() == *sequence.draft;
    if (has_draft) {
      sequence.draft_rate.count(is_right);
      draft_rate.count(is_right);
    }
    if (is_right && sequence.on_event != nullptr) {
      keep_routing(experts, first - 1, 1, sequence);
      const std::span next(rows[i].data() + rows[i].size(), rows[i].size());
      step.num_generated_tokens += take_token(sequence, next, choose_token(sequence, next));
      ++step.num_accepted_tokens;
    }
    sequence.cache.truncate(std::ssize(sequence.tokens) - 1);
  }
}

// Runs the MTP layer over the rows that counted, each with the token that came next, and guesses
// from the last row of each sequence that is decoding. Rows that another request left in the prefix
// cache may have seen another next token: that costs a wrong guess, never a wrong token.
void Engine::State::draft(const Batch& batch, const Tensor& hidden_ND) {
  std::vector<int64_t> rows, next_tokens, last_rows;
  std::vector<model::Segment> segments;
  std::vector<Sequence*> drafting;
  int64_t first = 0;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    Sequence& sequence = *batch.sequences[i];
    const model::Segment& segment = batch.segments[i];
    sequence.draft.reset();
    if (sequence.drafts && sequence.on_event != nullptr) {
      const int64_t count = sequence.cache.num_tokens() - segment.position;
      for (int64_t row = 0; row < count; ++row) {
        rows.push_back(first + row);
        next_tokens.push_back(sequence.tokens[segment.position + row + 1]);
      }
      segments.push_back({count, segment.position, &sequence.cache});
      if (!sequence.is_prefilling()) {
        drafting.push_back(&sequence);
        last_rows.push_back(std::ssize(rows) - 1);
      }
    }
    first += segment.num_tokens;
  }
  if (rows.empty()) return;
  const Tensor hidden = model::forward_mtp(*model, hidden_ND.index_select(0, index_tensor(rows)),
                                           index_tensor(next_tokens), segments, forward);
  if (drafting.empty()) return;
  const Tensor logits_RV =
      model::logits(*model, hidden.index_select(0, index_tensor(last_rows)), forward);
  base::parallel_for(std::ssize(drafting), kFewestChoices, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      drafting[i]->draft = guess_token(*drafting[i], row_of(logits_RV, i));
  });
}

// Of a request that is about to run. One in a few tries where the others' drafts do not pay: it may
// be another kind of text, and costs change.
bool Engine::State::drafts_from_the_start() {
  constexpr int64_t kMostUndrafted = 7;
  if (options.speculation != Speculation::kWherePays)
    return options.speculation == Speculation::kAlways;
  const int64_t num_sequences =
      std::min<int64_t>(std::ssize(running) + std::ssize(waiting), options.max_running_requests);
  const bool pays = 1 + draft_rate.share() >= draft_cost.plain_passes(num_sequences);
  num_undrafted = pays || num_undrafted >= kMostUndrafted ? 0 : num_undrafted + 1;
  return num_undrafted == 0;
}

// Learns from a step in which all sequences decoded, and ends the drafting of those whose drafts
// cost more than they save: for good, since MTP's cache is not kept up without. Where a later
// request begins with such pages its drafts are right a little less often (docs/LOG.md), and it may
// end them.
void Engine::State::weigh_drafts(const Batch& batch, double pass_seconds, double drafting_seconds) {
  const int64_t num_sequences = std::ssize(batch.sequences);
  int64_t num_prompts = 0, num_checked = 0, num_drafting = 0;
  for (int64_t i = 0; i < num_sequences; ++i) {
    num_prompts += batch.is_prompt(i);
    num_checked += batch.has_draft(i);
    num_drafting += batch.sequences[i]->draft.has_value();
  }
  if (num_prompts > 0) return;
  if (num_checked == 0 || num_checked == num_sequences)
    draft_cost.record_pass(num_sequences, num_checked > 0, pass_seconds);
  if (num_drafting == num_sequences) draft_cost.record_drafting(num_sequences, drafting_seconds);
  const double cost = draft_cost.plain_passes(num_sequences);
  const bool wants_plain_pass = draft_cost.wants_plain_pass(num_sequences);
  for (Sequence* sequence : batch.sequences) {
    const DraftRate& rate = sequence->draft_rate;
    if (rate.is_known() && 1 + rate.share() < cost) sequence->drafts = false;
    if (wants_plain_pass || !sequence->drafts) sequence->draft.reset();
  }
}

// Reports the sequence's next token and ends the sequence where it must end. Returns whether there
// was a token.
bool Engine::State::take_token(Sequence& sequence, std::span<const float> logits, Choice choice) {
  const Request& request = sequence.request;
  const model::Config& config = model::config_of(*model);
  if (choice.error) {
    fail_sequence(sequence, choice.reason, *choice.error);
    return false;
  }
  RequestEvent event;
  event.has_token = true;
  event.token.id = choice.drawn.id;
  if (request.record)
    event.record = TokenRecord{choice.drawn.logprob, std::move(choice.drawn.mask),
                               std::exchange(sequence.routed_experts, {}),
                               config.num_hidden_layers - config.first_k_dense_replace};
  if (request.sampling.logprobs) {
    std::vector<float> logprobs(logits.size());
    log_softmax(logits, logprobs);
    event.token.logprob = logprobs[event.token.id];
    event.top_logprobs = best_logprobs(logprobs, request.sampling.num_top_logprobs);
  }
  event.num_cached_tokens = sequence.num_cached_tokens;
  sequence.tokens.push_back(event.token.id);
  const auto& stops = request.stop_token_ids;
  const bool is_stop = std::find(stops.begin(), stops.end(), event.token.id) != stops.end();
  const bool is_full = std::ssize(sequence.generated()) >= request.max_tokens ||
                       std::ssize(sequence.tokens) >= context_length();
  event.is_finished = is_stop || is_full;
  event.finish_reason = is_stop ? FinishReason::kStop : FinishReason::kLength;
  sequence.on_event(event);
  if (event.is_finished) sequence.on_event = nullptr;  // marks it for removal
  return true;
}

void Engine::State::fail_all(const std::string& error) {
  for (auto& sequence : running) {
    if (sequence->on_event != nullptr) fail_sequence(*sequence, FinishReason::kFailed, error);
  }
}

Engine::Engine(std::shared_ptr<const model::Model> model, EngineOptions options)
    : state_(std::make_unique<State>(std::move(model), options)) {
  if (options.speculation != Speculation::kNone && !state_->model->weights.mtp)
    fail("the model has no MTP layer to speculate with (num_nextn_predict_layers is 0)");
  state_->thread = std::thread([this] { state_->run(); });
}

Engine::~Engine() {
  stop();
  state_->thread.join();
}

void Engine::stop() {
  const std::scoped_lock lock(state_->mutex);
  state_->is_stopping = true;
  state_->wake.notify_one();
}

Engine::RequestId Engine::submit(Request request, EventCallback on_event) {
  const auto& config = model::config_of(*state_->model);
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens == 0) fail("the prompt is empty; expected at least one token");
  if (prompt_tokens >= config.max_position_embeddings)
    fail(
        "the prompt has {} tokens; the model's context is {} tokens, at least one of them for the "
        "answer",
        prompt_tokens, config.max_position_embeddings);
  for (int32_t id : request.prompt)
    if (id < 0 || id >= config.vocab_size)
      fail("token id {} is outside the vocabulary of {}", id, config.vocab_size);
  if (request.max_tokens < 1) fail("max_tokens is {}; expected at least 1", request.max_tokens);
  validate(request.sampling);
  for (const auto& [id, bias] : request.sampling.logit_bias)
    if (id < 0 || id >= config.vocab_size)
      fail("logit_bias names token {}; the vocabulary has {}", id, config.vocab_size);
  for (const int32_t id : request.stop_token_ids)
    if (id < 0 || id >= config.vocab_size)
      fail("stop_token_ids names token {}; the vocabulary has {}", id, config.vocab_size);
  if (prompt_tokens >= context_length())
    fail("the prompt has {} tokens; all caches together hold {}", prompt_tokens, context_length());
  const int64_t length = std::min(prompt_tokens + request.max_tokens, context_length());
  const int64_t num_pages = (length + kernels::kPageRows - 1) / kernels::kPageRows;
  const base::Random random(request.sampling.seed);
  auto sequence = std::make_unique<Sequence>(
      Sequence{0, std::move(request), std::move(on_event),
               model::KvCache(config, state_->options.cache_format), random});
  sequence->tokens = sequence->request.prompt;
  sequence->num_pages = num_pages;
  const std::scoped_lock lock(state_->mutex);
  if (state_->is_stopping) throw Stopped("the engine has stopped");
  // Those that the next step will begin wait too, until then.
  const auto num_requests = std::ssize(state_->waiting) + std::ssize(state_->running);
  if (num_requests >= state_->options.max_running_requests + state_->options.max_waiting_requests)
    throw QueueFull(fmt::format("{} requests run or wait already; try again later", num_requests));
  sequence->id = state_->next_id++;
  const RequestId id = sequence->id;
  state_->waiting.push_back(std::move(sequence));
  state_->wake.notify_one();
  return id;
}

void Engine::cancel(RequestId id) {
  const std::scoped_lock lock(state_->mutex);
  state_->cancelled.push_back(id);
}

int64_t Engine::context_length() const { return state_->context_length(); }

Engine::Statistics Engine::statistics() const {
  const std::scoped_lock lock(state_->mutex);
  Statistics statistics = state_->statistics;
  statistics.num_running = std::ssize(state_->running);
  statistics.num_waiting = std::ssize(state_->waiting);
  statistics.cache_pages_running = state_->reserved_pages();
  statistics.cache_pages_kept = state_->prefixes.num_pages();
  statistics.cache_pages_total = state_->max_pages;
  return statistics;
}

}  // namespace fathom::engine
