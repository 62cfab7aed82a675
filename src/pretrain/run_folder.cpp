#include "pretrain/run_folder.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <sstream>
#include <utility>

#include "base/check.h"
#include "base/file.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "model/verify.h"

namespace fathom::pretrain {
namespace {

void save_optimizer(const std::vector<Optimizer::State>& state, const std::filesystem::path& path) {
  std::vector<model::NamedTensor> tensors;
  for (const auto& [name, tensor] : state)
    tensors.push_back({name,
                       {model::DType::kF32, tensor.sizes().vec(),
                        static_cast<const std::byte*>(tensor.data_ptr())}});
  model::write_safetensors(path, tensors);
}

std::string shard_name(int64_t shard, int64_t num_shards) {
  if (num_shards == 1) return "optimizer.safetensors";
  return fmt::format("optimizer-{:05}-of-{:05}.safetensors", shard + 1, num_shards);
}

std::vector<std::filesystem::path> optimizer_shards(const std::filesystem::path& checkpoint) {
  int64_t num_shards = 1;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint)) {
    const std::string name = entry.path().filename();
    const size_t of = name.find("-of-");
    if (name.starts_with("optimizer-") && of != std::string::npos)
      num_shards = std::max<int64_t>(num_shards, std::atoll(name.c_str() + of + 4));
  }
  std::vector<std::filesystem::path> paths;
  for (int64_t shard = 0; shard < num_shards; ++shard) {
    paths.push_back(checkpoint / shard_name(shard, num_shards));
    if (!std::filesystem::exists(paths.back()))
      fail("{}: is missing; the checkpoint was written by {} rank{}, whose file each is needed",
           paths.back().string(), num_shards, num_shards == 1 ? "" : "s");
  }
  return paths;
}

// The number of a folder step-NNNNNN; nothing of any other name.
std::optional<int64_t> step_of(const std::filesystem::path& checkpoint) {
  const std::string name = checkpoint.filename();
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return {};
  int64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto read = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (read.ec != std::errc() || read.ptr != end) return {};
  return step;
}

// All but `keep` checkpoints, that of `newest_step` among them. Those of later steps go first: they
// are the future of a run that somebody turned back.
void remove_older(const std::filesystem::path& folder, int64_t newest_step, int64_t keep) {
  struct Checkpoint {
    bool is_reached;
    int64_t step;
    std::filesystem::path path;
  };
  std::vector<Checkpoint> all;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto& path = entry.path();
    if (const auto step = step_of(path))
      all.push_back({*step <= newest_step, *step, path});
    else if ((path.extension() == ".tmp" && step_of(path.stem())) ||
             path.filename().string().starts_with("latest.tmp."))  // a killed process's
      std::filesystem::remove_all(path);
  }
  std::sort(all.begin(), all.end(), [](const Checkpoint& a, const Checkpoint& b) {
    return std::pair(a.is_reached, a.step) < std::pair(b.is_reached, b.step);
  });
  for (size_t i = 0; i + static_cast<size_t>(keep) < all.size(); ++i)
    std::filesystem::remove_all(all[i].path);
}

// A number, or a list of them, by layer; whether a step was skipped.
void check_figure(const std::string& key, const Json& value, const std::string& where) {
  const bool is_single = key == "step" || key == "tokens" || key == "seconds";
  const bool is_list = value.is_array() && std::all_of(value.begin(), value.end(),
                                                       [](const Json& x) { return x.is_number(); });
  if (value.is_number() || (!is_single && (is_list || value.is_boolean()))) return;
  fail("{}: \"{}\" is {}; expected a number{}", where, key, value.dump(),
       is_single ? "" : " or a list of numbers");
}

}  // namespace

RunFolder::RunFolder(std::filesystem::path folder) : folder_(std::move(folder)) {
  std::filesystem::create_directories(folder_);
}

void RunFolder::save(const TrainerState& state, const model::Model& model,
                     const std::vector<Optimizer::State>& optimizer, int64_t keep,
                     const model::RankGroup& ranks) const {
  const std::string name = fmt::format("step-{:06}", state.step);
  const auto temporary = folder_ / (name + ".tmp");
  if (ranks.is_first()) {
    std::filesystem::remove_all(temporary);
    model::save_checkpoint(model, temporary, torch::kFloat32);
  }
  ranks.barrier();  // the folder is there
  save_optimizer(optimizer, temporary / shard_name(ranks.rank(), ranks.size()));
  ranks.barrier();  // all files are
  if (!ranks.is_first()) return;
  Json json = {{"step", state.step},
               {"total_steps", state.total_steps},
               {"seconds", state.seconds},
               {"recipe", state.recipe}};
  if (state.init) json["init"] = *state.init;
  if (state.tokens)
    json["tokens"] = {{"corpus", state.tokens->corpus}, {"tokenizer", state.tokens->tokenizer}};
  base::write_file_atomically(temporary / "trainer.json", json.dump(2) + "\n");
  std::vector<std::string> written;
  for (const auto& path : optimizer_shards(temporary)) written.push_back(path.filename());
  model::add_checksums(temporary, written);
  std::filesystem::remove_all(folder_ / name);
  std::filesystem::rename(temporary, folder_ / name);
  base::write_file_atomically(folder_ / "latest", name + "\n");
  remove_older(folder_, state.step, keep);
}

std::optional<std::filesystem::path> RunFolder::latest() const {
  const auto path = folder_ / "latest";
  if (!std::filesystem::exists(path)) return {};
  std::string name = base::read_file(path);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (name.empty())
    fail(
        "{}: is empty; write the name of a checkpoint of this folder into it, as step-000250, or "
        "delete the file to start anew",
        path.string());
  if (!std::filesystem::is_directory(folder_ / name))
    fail("{}: names checkpoint {}, which is not there; restore it or delete the file to start anew",
         path.string(), name);
  return folder_ / name;
}

TrainerState RunFolder::load_state(const std::filesystem::path& checkpoint) {
  const auto path = checkpoint / "trainer.json";
  const Json json = base::read_json_file(path);
  try {
    TrainerState state{json.at("step"), json.at("total_steps"), json.at("seconds"),
                       json.at("recipe")};
    if (json.contains("init")) state.init = json["init"].get<std::string>();
    if (json.contains("tokens"))
      state.tokens = {json["tokens"].at("corpus"), json["tokens"].at("tokenizer")};
    return state;
  } catch (const Json::exception& error) {
    fail("{}: not a state of training ({}); expected what pretrain writes", path.string(),
         error.what());
  }
}

std::vector<Optimizer::State> RunFolder::load_optimizer(const std::filesystem::path& checkpoint) {
  std::vector<Optimizer::State> state;
  for (const auto& path : optimizer_shards(checkpoint)) {
    const auto file = model::Safetensors::open(path);
    for (const auto& [name, view] : file.tensors())
      state.push_back(
          {name, torch::from_blob(const_cast<std::byte*>(view.data), view.shape).clone()});
  }
  return state;
}

std::vector<Json> RunFolder::read_metrics(const std::filesystem::path& path) {
  std::vector<Json> lines;
  std::istringstream text(base::read_file(path));
  for (std::string line; std::getline(text, line);) {
    const Json json = Json::parse(line, nullptr, false);
    const std::string where = fmt::format("{}: line {}", path.string(), lines.size() + 1);
    if (!json.is_object() && text.eof()) break;  // a whole line ends with a newline
    if (!json.is_object()) fail("{} is not a JSON object", where);
    Json figures = Json::object();
    for (const auto& [key, value] : json.items()) {
      if (value.is_null()) continue;
      check_figure(key, value, where);
      figures[key] = value;
    }
    lines.push_back(std::move(figures));
  }
  return lines;
}

void RunFolder::begin_metrics(const TrainerState& state) {
  const auto path = folder_ / "metrics.jsonl";
  std::vector<Json> kept;
  if (std::filesystem::exists(path)) {
    std::string text;
    for (Json& line : read_metrics(path)) {
      if (line.value("step", 0.0) > static_cast<double>(state.step)) continue;
      text += line.dump() + "\n";
      kept.push_back(std::move(line));
    }
    base::write_file_atomically(path, text);
  }
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  events_.emplace(folder_ / "events", kept, now.count() - state.seconds);
}

void RunFolder::append_metrics(const Json& line) {
  CHECK(events_.has_value(), "append_metrics before begin_metrics");
  const auto path = folder_ / "metrics.jsonl";
  std::ofstream file(path, std::ios::app);
  file << line.dump() << "\n" << std::flush;
  if (!file) fail("{}: cannot write; expected room on the disk", path.string());
  events_->append(line);
}

}  // namespace fathom::pretrain
