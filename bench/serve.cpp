#include "bench/serve.h"

#include <fmt/format.h>
#include <httplib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <map>
#include <mutex>
#include <regex>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/progress.h"
#include "base/random.h"

namespace fathom::bench {
namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void check_loopback(const std::string& url) {
  static const std::regex kLoopback(
      R"(http://(127(\.[0-9]{1,3}){3}|localhost|\[::1\])(:[0-9]{1,5})?/?)");
  if (std::regex_match(url, kLoopback)) return;
  fail(
      "--url {}: expected a loopback address, such as http://127.0.0.1:8080; a load generator is "
      "not pointed at other machines",
      url);
}

struct Times {
  std::vector<double> ttft_ms, between_ms, request_ms;
  int64_t num_tokens = 0;
  std::map<std::string, int> failures;

  void add(const Times& other) {
    const auto append = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(ttft_ms, other.ttft_ms);
    append(between_ms, other.between_ms);
    append(request_ms, other.request_ms);
    num_tokens += other.num_tokens;
    for (const auto& [cause, count] : other.failures) failures[cause] += count;
  }
};

// What one streamed answer brings, read as it arrives.
class StreamReader {
 public:
  explicit StreamReader(Clock::time_point due) : due_(due) {}

  void take(std::string_view bytes) {
    pending_ += bytes;
    for (size_t end; (end = pending_.find("\n\n")) != std::string::npos;) {
      take_event(std::string_view(pending_).substr(0, end));
      pending_.erase(0, end + 2);
    }
  }
  bool is_whole() const { return is_done_; }
  Times times() const {
    Times times = times_;
    times.request_ms.push_back(ms_since(due_));
    return times;
  }

 private:
  void take_event(std::string_view event) {
    if (!event.starts_with("data: ")) return;
    event.remove_prefix(6);
    if (event == "[DONE]") {
      is_done_ = true;
      return;
    }
    const Json chunk = Json::parse(event, nullptr, false);
    if (!chunk.is_object() || !chunk.contains("choices")) return;
    if (chunk.contains("usage") && chunk["usage"].is_object())
      times_.num_tokens = chunk["usage"].value("completion_tokens", int64_t{0});
    if (chunk["choices"].empty() || chunk["choices"][0].value("text", "").empty()) return;
    if (num_pieces_++ == 0)
      times_.ttft_ms.push_back(ms_since(due_));
    else
      times_.between_ms.push_back(ms_since(last_));
    last_ = Clock::now();
  }

  Clock::time_point due_, last_;
  Times times_;
  std::string pending_;
  int64_t num_pieces_ = 0;
  bool is_done_ = false;
};

constexpr size_t kMostOfARefusal = 64 << 10;

// Of an answer that is no stream: the API's error, or what else it says.
std::string message_of(const std::string& body) {
  const Json json = Json::parse(body, nullptr, false);
  if (json.is_object() && json.contains("error") && json["error"].is_object())
    return json["error"].value("message", body);
  return body;
}

class Load {
 public:
  explicit Load(const ServeOptions& options) : options_(options) {
    base::Random random(options.seed, 0);
    double at = 0;
    for (int i = 0; i < options.num_requests; ++i) {
      if (options.requests_per_second > 0)
        at -= std::log(1 - random.uniform()) / options.requests_per_second;
      due_s_.push_back(at);
    }
  }

  Json run() {
    check_answers();
    start_ = Clock::now();
    std::vector<std::thread> workers;
    for (int i = 0; i < std::min(options_.concurrency, options_.num_requests); ++i)
      workers.emplace_back([this] { work(); });
    for (std::thread& worker : workers) worker.join();
    return report(ms_since(start_) / 1e3);
  }

 private:
  void check_answers() {
    httplib::Client client(options_.url);
    client.set_connection_timeout(5);
    const auto models = client.Get("/v1/models");
    if (!models || models->status != 200)
      fail("{}: no server answers there ({}); start one with fathom serve", options_.url,
           models ? fmt::format("status {}", models->status) : httplib::to_string(models.error()));
  }

  void work() {
    httplib::Client client(options_.url);
    client.set_read_timeout(
        std::chrono::milliseconds(static_cast<int64_t>(options_.timeout_s * 1e3)));
    client.set_keep_alive(true);
    client.set_tcp_nodelay(true);
    for (int i; (i = next_++) < options_.num_requests;) {
      Clock::time_point due = Clock::now();
      if (options_.requests_per_second > 0) {
        due = start_ +
              std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(due_s_[i]));
        std::this_thread::sleep_until(due);
      }
      const Times times = ask(client, i, due);
      const std::scoped_lock lock(mutex_);
      times_.add(times);
    }
  }

  Times ask(httplib::Client& client, int index, Clock::time_point due) const {
    base::Random random(options_.seed, static_cast<uint64_t>(index) + 1);
    Json prompt = Json::array();
    for (int i = 0; i < options_.prompt_tokens; ++i) prompt.push_back(3 + random.below(250));
    const Json body = {{"model", "any"}, {"prompt", prompt},
                       {"stream", true}, {"max_tokens", options_.max_tokens},
                       {"seed", index},  {"temperature", 1}};
    httplib::Request request;
    request.method = "POST";
    request.path = "/v1/completions";
    request.headers.emplace("Content-Type", "application/json");
    request.body = body.dump();
    StreamReader reader(due);
    std::string refusal;
    request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
      reader.take({data, size});
      if (refusal.size() < kMostOfARefusal) refusal.append(data, size);
      return true;
    };
    const auto result = client.send(request);
    Times failed;
    if (!result)
      failed.failures[httplib::to_string(result.error())] = 1;
    else if (result->status != 200)
      failed.failures[fmt::format("status {}: {}", result->status, message_of(refusal))] = 1;
    else if (!reader.is_whole())
      failed.failures["cut off"] = 1;
    return failed.failures.empty() ? reader.times() : failed;
  }

  static Json percentiles(std::vector<double> values) {
    if (values.empty()) return nullptr;
    std::sort(values.begin(), values.end());
    // The least value that so large a share of them do not exceed.
    const auto at = [&](double share) {
      const auto count = static_cast<double>(values.size());
      return values[static_cast<size_t>(std::ceil(share * count - 1e-9)) - 1];
    };
    return {{"p50", at(0.5)}, {"p90", at(0.9)}, {"p99", at(0.99)}, {"most", values.back()}};
  }

  Json report(double seconds) const {
    return {{"url", options_.url},
            {"requests", options_.num_requests},
            {"concurrency", options_.concurrency},
            {"requests_per_s_asked", options_.requests_per_second},
            {"prompt_tokens", options_.prompt_tokens},
            {"max_tokens", options_.max_tokens},
            {"answered", times_.request_ms.size()},
            {"failures", times_.failures},
            {"seconds", seconds},
            {"tokens_per_s", static_cast<double>(times_.num_tokens) / seconds},
            {"ttft_ms", percentiles(times_.ttft_ms)},
            {"between_ms", percentiles(times_.between_ms)},
            {"request_ms", percentiles(times_.request_ms)}};
  }

  const ServeOptions& options_;
  std::vector<double> due_s_;  // after the start
  Clock::time_point start_;
  std::atomic<int> next_ = 0;
  std::mutex mutex_;
  Times times_;
};

}  // namespace

Json measure_serve(const ServeOptions& options) {
  check_loopback(options.url);
  ServeOptions trimmed = options;  // as browsers copy it, with a slash
  if (trimmed.url.ends_with('/')) trimmed.url.pop_back();
  return Load(trimmed).run();
}

}  // namespace fathom::bench
