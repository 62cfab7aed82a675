#include "server/server.h"

#include <fmt/format.h>
#include <httplib.h>

#include <csignal>
#include <thread>

#include "base/memory.h"
#include "base/parallel.h"
#include "base/progress.h"
#include "model/verify.h"
#include "server/api_error.h"
#include "server/api_request.h"
#include "server/api_response.h"
#include "server/client_connection.h"
#include "server/generation.h"
#include "server/text_model.h"
#include "server/web_assets.h"
#include "text/chat_markup.h"

namespace fathom::server {
namespace {

constexpr size_t kMostBodyBytes = 32 << 20;
// Connections beyond those whose requests run or wait: they are told that the queue is full, or ask
// how the server is. Each has a thread as long as it is open.
constexpr int kSpareConnections = 64;
// How often a request that waits for its next token looks whether its client has gone.
constexpr std::chrono::milliseconds kLookInterval{100};

// What all handlers share.
struct Service {
  std::string model_name;
  text::Tokenizer tokenizer;
  std::shared_ptr<const text::TokenSpellings> spellings;
  ApiRequestOptions request_options;
  engine::Engine engine;
  std::atomic<int> num_streams{0};  // open
};

// Counts a stream as long as it lives.
class OpenStream {
 public:
  explicit OpenStream(Service& service) : service_(service) { ++service_.num_streams; }
  ~OpenStream() { --service_.num_streams; }
  OpenStream(const OpenStream&) = delete;

 private:
  Service& service_;
};

void answer_json(const Json& body, int status, httplib::Response& response) {
  response.status = status;
  response.set_content(body.dump(-1, ' ', false, Json::error_handler_t::replace),
                       "application/json");
}

void answer_error(const ApiError& error, httplib::Response& response) {
  if (error.status == 429) response.set_header("Retry-After", "1");
  answer_json(error_body(error), error.status, response);
}

std::string sse(const Json& chunk) {
  return "data: " + chunk.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n\n";
}

ApiError api_error_of(const std::exception& error) {
  if (const auto* known = dynamic_cast<const ApiError*>(&error)) return *known;
  if (dynamic_cast<const engine::QueueFull*>(&error))
    return ApiError(429, error.what(), "", "rate_limit_exceeded");
  if (dynamic_cast<const engine::Stopped*>(&error))
    return ApiError(503, error.what(), "", "shutting_down");
  if (dynamic_cast<const Error*>(&error)) return ApiError(400, error.what());
  return ApiError(500, error.what(), "", "internal_error");
}

// Runs a handler; whatever it throws becomes an error answer.
template <typename Handler>
httplib::Server::Handler guarded(const Handler& handler) {
  return [handler](const httplib::Request& request, httplib::Response& response) {
    try {
      handler(request, response);
    } catch (const std::exception& error) {
      answer_error(api_error_of(error), response);
    }
  };
}

std::shared_ptr<Generation> start_generation(Service& service, const ApiRequest& request) {
  return std::make_shared<Generation>(
      service.engine, service.tokenizer,
      GenerationRequest{.prompt = request.prompt,
                        .prompt_tokens = request.prompt_tokens,
                        .sampling = request.sampling,
                        .max_tokens = request.max_tokens,
                        .stop = request.stop,
                        .stops_until = request.is_chat ? text::markup::kCallsOpen : "",
                        .stop_token_ids = request.stop_token_ids,
                        .grammar = request.grammar,
                        .record = request.record},
      service.spellings);
}

// Where the client hangs up, throws instead: what unwinds drops the generation, whose destructor
// cancels it.
std::optional<Piece> next_piece(Generation& generation, const ClientConnection& client) {
  do {
    if (client.has_hung_up())
      throw ApiError(499, "the client has closed the connection", "", "client_closed_request");
  } while (!generation.wait(kLookInterval));
  return generation.next();
}

// Writes chunks as they come. A failed write drops the generation too.
void stream(Service& service, const ApiRequest& request, const ClientConnection& client,
            httplib::Response& response) {
  auto open = std::make_shared<const OpenStream>(service);
  auto generation = start_generation(service, request);
  auto answer = std::make_shared<ApiResponse>(request, service.tokenizer, service.model_name);
  response.set_header("Cache-Control", "no-cache");
  response.set_chunked_content_provider(
      "text/event-stream", [generation, answer, open, client](size_t, httplib::DataSink& sink) {
        const auto write = [&](const std::string& text) {
          return sink.is_writable() && sink.write(text.data(), text.size());
        };
        try {
          if (const auto piece = next_piece(*generation, client)) {
            for (const Json& chunk : answer->add(*piece))
              if (!write(sse(chunk))) return false;
            return sink.is_writable();
          }
          for (const Json& chunk : answer->finish(*generation))
            if (!write(sse(chunk))) return false;
        } catch (const std::exception& error) {
          if (!write(sse(error_body(api_error_of(error))))) return false;
        }
        if (!write("data: [DONE]\n\n")) return false;
        sink.done();
        return true;
      });
}

void complete(Service& service, const ApiRequest& request, const ClientConnection& client,
              httplib::Response& response) {
  if (request.is_stream) {
    stream(service, request, client, response);
    return;
  }
  const auto generation = start_generation(service, request);
  ApiResponse answer(request, service.tokenizer, service.model_name);
  while (const auto piece = next_piece(*generation, client)) answer.add(*piece);
  answer.finish(*generation);
  answer_json(answer.body(), 200, response);
}

std::string metrics(const Service& service) {
  const auto s = service.engine.statistics();
  return fmt::format(
      "# TYPE fathom_requests_running gauge\nfathom_requests_running {}\n"
      "# TYPE fathom_requests_waiting gauge\nfathom_requests_waiting {}\n"
      "# TYPE fathom_prompt_tokens_total counter\nfathom_prompt_tokens_total {}\n"
      "# TYPE fathom_cached_prompt_tokens_total counter\nfathom_cached_prompt_tokens_total {}\n"
      "# TYPE fathom_generated_tokens_total counter\nfathom_generated_tokens_total {}\n"
      "# TYPE fathom_drafted_tokens_total counter\nfathom_drafted_tokens_total {}\n"
      "# TYPE fathom_accepted_tokens_total counter\nfathom_accepted_tokens_total {}\n"
      "# TYPE fathom_cache_pages_running gauge\nfathom_cache_pages_running {}\n"
      "# TYPE fathom_cache_pages_kept gauge\nfathom_cache_pages_kept {}\n"
      "# TYPE fathom_cache_pages_total gauge\nfathom_cache_pages_total {}\n"
      "# TYPE fathom_heap_bytes gauge\nfathom_heap_bytes {}\n",
      s.num_running, s.num_waiting, s.num_prompt_tokens, s.num_cached_tokens,
      s.num_generated_tokens, s.num_drafted_tokens, s.num_accepted_tokens, s.cache_pages_running,
      s.cache_pages_kept, s.cache_pages_total, base::live_heap_bytes());
}

std::string not_unpacked(const std::string& encoding) {
  return fmt::format("the request body could not be unpacked from {}", encoding);
}

// Some bodies that it cannot unpack the library leaves empty.
const std::string& body_of(const httplib::Request& request) {
  const std::string encoding = request.get_header_value("Content-Encoding");
  if (encoding.empty() || encoding == "identity") return request.body;
  if (encoding != "gzip" && encoding != "deflate")
    throw ApiError(415,
                   fmt::format("Content-Encoding is {}; expected gzip, deflate or none", encoding));
  if (request.body.empty()) throw ApiError(400, not_unpacked(encoding));
  return request.body;
}

void add_api_routes(Service& service, httplib::Server& http) {
  http.Post("/v1/chat/completions",
            guarded([&service](const httplib::Request& request, httplib::Response& response) {
              complete(
                  service,
                  parse_chat_request(parse_request_body(body_of(request)), service.request_options),
                  ClientConnection(request), response);
            }));
  http.Post("/v1/completions",
            guarded([&service](const httplib::Request& request, httplib::Response& response) {
              complete(service,
                       parse_completion_request(parse_request_body(body_of(request)),
                                                service.request_options),
                       ClientConnection(request), response);
            }));
  http.Get("/v1/models", [&service](const httplib::Request&, httplib::Response& response) {
    const Json model = {{"id", service.model_name},
                        {"object", "model"},
                        {"owned_by", "fathom"},
                        {"context_length", service.engine.context_length()}};
    answer_json({{"object", "list"}, {"data", Json::array({model})}}, 200, response);
  });
  http.Get("/health", [](const httplib::Request&, httplib::Response& response) {
    answer_json({{"status", "ok"}}, 200, response);
  });
  http.Get("/metrics", [&service](const httplib::Request&, httplib::Response& response) {
    response.set_content(metrics(service), "text/plain; version=0.0.4");
  });
}

void add_page_routes(httplib::Server& http) {
  const auto page = [&http](const char* path, std::string_view content, const char* type) {
    http.Get(path, [content, type](const httplib::Request&, httplib::Response& response) {
      response.set_content(content.data(), content.size(), type);
    });
  };
  page("/", kIndexHtml, "text/html; charset=utf-8");
  page("/app.js", kAppJs, "text/javascript; charset=utf-8");
  page("/style.css", kStyleCss, "text/css; charset=utf-8");
}

// The method that a path answers to; none: there is no such path.
std::string method_of(const std::string& path) {
  for (const char* post : {"/v1/chat/completions", "/v1/completions"})
    if (path == post) return "POST";
  for (const char* get : {"/v1/models", "/health", "/metrics", "/", "/app.js", "/style.css"})
    if (path == get) return "GET";
  return "";
}

void answer_unknown(const httplib::Request& request, httplib::Response& response) {
  const std::string method = method_of(request.path);
  if (method.empty()) {
    const std::string message = fmt::format("there is no {} {}", request.method, request.path);
    answer_error(ApiError(404, message, "", "not_found"), response);
    return;
  }
  const std::string message =
      fmt::format("{} answers {}, not {}", request.path, method, request.method);
  response.set_header("Allow", method);
  answer_error(ApiError(405, message, "", "method_not_allowed"), response);
}

// Errors that no handler has answered: unknown routes, oversized bodies.
void add_error_handler(httplib::Server& http) {
  http.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    if (response.status == 413)
      answer_error(
          ApiError(413, fmt::format("the request body exceeds {} MiB", kMostBodyBytes >> 20)),
          response);
    else if (response.status == 404)
      answer_unknown(request, response);
    else if (request.has_header("Content-Encoding"))
      answer_error(
          ApiError(response.status, not_unpacked(request.get_header_value("Content-Encoding"))),
          response);
    else
      answer_error(ApiError(response.status, "the request could not be understood"), response);
  });
}

std::atomic<int> caught_signal{0};

// Stops the server on SIGINT or SIGTERM; a handler may only set a flag. Every answer ends with what
// it has when the forward pass under way is done, and then the connections. A pass of more than
// three seconds cuts streams short, one of more than nine whole answers: most who stop a server
// kill it after ten.
class SignalWatch {
 public:
  SignalWatch(httplib::Server& http, Service& service) {
    caught_signal = 0;
    for (int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int s) { caught_signal = s; });
    std::signal(SIGPIPE, SIG_IGN);
    thread_ = std::jthread([&](std::stop_token stop) {
      while (!stop.stop_requested() && caught_signal == 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      service.engine.stop();
      // The library drops open streams in the middle.
      wait(3, [&] { return service.num_streams == 0; });
      http.stop();
      // It closes idle connections after five seconds, and waits for requests that are still being
      // sent: for ever, if they trickle in.
      if (wait(6, [&] { return stop.stop_requested(); })) return;
      fmt::print(stderr, "fathom: connections are still busy; not waiting for them\n");
      std::_Exit(0);
    });
  }

 private:
  // Whether it came true in time.
  static bool wait(double seconds, const std::function<bool()>& is_done) {
    const base::Stopwatch watch;
    while (!is_done() && watch.seconds() < seconds)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return is_done();
  }

  std::jthread thread_;
};

int bind_port(const ServerOptions& options, httplib::Server& http) {
  if (options.port == 0) {
    const int port = http.bind_to_any_port(options.host);
    if (port < 0)
      fail("cannot listen on {}: no free port, or the address is not this machine's", options.host);
    return port;
  }
  if (!http.bind_to_port(options.host, options.port))
    fail("cannot listen on {}:{}; the port is in use or not allowed. Choose another with --port",
         options.host, options.port);
  return options.port;
}

int most_connections(const ServerOptions& options) {
  return options.max_running_requests + options.max_waiting_requests + kSpareConnections;
}

int bind(const ServerOptions& options, httplib::Server& http) {
  socket_t listening = -1;
  http.set_socket_options([&](socket_t socket) {
    // The library's default (SO_REUSEPORT) lets a second server take the same port silently.
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    listening = socket;
  });
  const int port = bind_port(options, http);
  // The library lets five connections wait to be accepted. The system drops others of a crowd, and
  // they try again after one, three, seven seconds.
  ::listen(listening, most_connections(options));
  http.set_socket_options(nullptr);
  return port;
}

}  // namespace

void serve(const ServerOptions& options) {
  if (options.num_threads > 0) base::set_num_threads(options.num_threads);
  const base::Stopwatch watch;
  httplib::Server http;
  const int port = bind(options, http);
  if (options.verify) model::verify_checkpoint(options.model);
  TextModel model = load_text_model(options.model);
  const std::string name = std::filesystem::weakly_canonical(options.model).filename().string();
  fmt::print("{}: {:.2f} M parameters, context {} tokens\n", options.model.string(),
             static_cast<double>(model::num_parameters(*model.model)) / 1e6,
             model::config_of(*model.model).max_position_embeddings);
  const auto spellings = std::make_shared<const text::TokenSpellings>(model.tokenizer);
  Service service{name,
                  std::move(model.tokenizer),
                  spellings,
                  {.is_strict_reasoning = options.is_strict_reasoning,
                   .sampling = model.sampling,
                   .stop_token_ids = model.stop_token_ids},
                  engine::Engine(std::move(model.model),
                                 {.max_running_requests = options.max_running_requests,
                                  .max_waiting_requests = options.max_waiting_requests,
                                  .cache_format = options.cache_format,
                                  .cache_bytes = options.cache_mib << 20,
                                  .speculation = options.speculate ? engine::Speculation::kWherePays
                                                                   : engine::Speculation::kNone})};
  http.new_task_queue = [count = most_connections(options)] {
    return new httplib::ThreadPool(count);
  };
  http.set_payload_max_length(kMostBodyBytes);
  http.set_keep_alive_max_count(1000);
  http.set_tcp_nodelay(true);
  // The library would cut any answer to what a Range header asks for.
  http.set_pre_routing_handler([](const httplib::Request& request, httplib::Response&) {
    const_cast<httplib::Request&>(request).ranges.clear();
    return httplib::Server::HandlerResponse::Unhandled;
  });
  add_api_routes(service, http);
  add_page_routes(http);
  add_error_handler(http);
  const SignalWatch watch_signals(http, service);
  fmt::print("ready after {}\nlistening on http://{}:{}\n\n", base::format_seconds(watch.seconds()),
             options.host, port);
  fmt::print(
      "Open it in a browser, or:\n"
      "  curl http://{}:{}/v1/completions -H 'Content-Type: application/json' \\\n"
      "    -d '{{\"prompt\": \"The function returns\", \"max_tokens\": 40}}'\n",
      options.host, port);
  std::fflush(stdout);
  if (!http.listen_after_bind()) fail("the server on port {} ended unexpectedly", port);
}

}  // namespace fathom::server
