#include "model/convert_to_dsa.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "model/verify.h"

namespace fathom::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kIndexerShard = "model-indexer.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

// What a file of V2 may leave out, as V2's own code has it: V3.2 means something else by that.
void write_out_defaults_of_v2(Json& json) {
  const Json defaults = {
      {"scoring_func", "softmax"}, {"topk_method", "greedy"}, {"norm_topk_prob", false}};
  for (const auto& [key, value] : defaults.items())
    if (json.value(key, Json()).is_null()) json[key] = value;
}

// The code of V2 and V3 scales cos and sin where mscale or mscale_all_dim is not there, and
// stretches at any context; V3.2's does neither.
void check_rope_scaling(const Json& json, const std::string& path) {
  const std::string name = json.contains("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const Json yarn = json.value(name, Json());
  if (!yarn.is_object() || yarn.value("rope_type", Json()) == "default") return;
  for (const auto& [key, other] :
       {std::pair("mscale", "mscale_all_dim"), std::pair("mscale_all_dim", "mscale")})
    if (yarn.value(key, Json()).is_null())
      fail("{}: field \"{}.{}\" is missing; expected what {} is", path, name, key, other);
  const Json length = json.value("max_position_embeddings", Json());
  if (length == yarn.value("original_max_position_embeddings", Json()))
    fail(
        "{}: max_position_embeddings is {} and {}.original_max_position_embeddings is {}; expected "
        "more, since the scaling would do nothing",
        path, length.dump(), name, length.dump());
}

Json converted_config(const DsaConversion& options) {
  const fs::path path = options.source / "config.json";
  Json json = base::read_json_file(path);
  const std::string type = json.is_object() ? json.value("model_type", Json()).dump() : "missing";
  if (type == "\"deepseek_v32\"")
    fail("{}: model_type is deepseek_v32, which has indexers already", path.string());
  if (type != "\"deepseek_v2\"" && type != "\"deepseek_v3\"")
    fail("{}: model_type is {}; expected \"deepseek_v2\" or \"deepseek_v3\"", path.string(), type);
  if (type == "\"deepseek_v2\"") write_out_defaults_of_v2(json);
  check_rope_scaling(json, path.string());
  json["model_type"] = "deepseek_v32";
  json["architectures"] = {"DeepseekV32ForCausalLM"};
  json["index_n_heads"] = options.index_n_heads;
  json["index_head_dim"] = options.index_head_dim;
  json["index_topk"] = options.index_topk;
  json.erase("auto_map");  // names code of the model that it was
  parse_config(json, path.string());
  return json;
}

void link_or_copy(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::create_hard_link(fs::canonical(from), to, error);
  if (!error) return;
  const uintmax_t size = fs::file_size(from), free = fs::space(to.parent_path()).available;
  if (size > free)
    fail("{}: no space left: {} bytes of {} to copy, {} free", to.string(), size, from.string(),
         free);
  fs::copy_file(from, to);
}

// The source's shards by tensor name.
Json weight_map(const fs::path& source) {
  if (fs::exists(source / kIndexFile)) return base::read_json_file(source / kIndexFile);
  Json index = {{"metadata", Json::object()}, {"weight_map", Json::object()}};
  if (!fs::exists(source / "model.safetensors"))
    fail("{}: neither model.safetensors nor {} is there; shards need their index", source.string(),
         kIndexFile);
  const auto shard = Safetensors::open(source / "model.safetensors");
  for (const auto& [name, view] : shard.tensors()) index["weight_map"][name] = "model.safetensors";
  return index;
}

std::set<std::string> write_indexers(const Config& config, uint64_t seed, const fs::path& shard) {
  const torch::NoGradGuard no_grad;
  Weights weights = empty_weights(config);
  std::vector<torch::Tensor> kept;
  std::vector<NamedTensor> tensors;
  std::set<std::string> names;
  uint64_t stream = 0;
  for (const TensorSlot& slot : tensor_slots(weights, config)) {
    ++stream;
    if (!is_indexer(slot)) continue;
    kept.push_back(initial_value(slot, config, seed, stream - 1).to(torch::kBFloat16));
    tensors.push_back(
        {slot.name,
         {DType::kBF16, slot.shape, static_cast<const std::byte*>(kept.back().data_ptr())}});
    names.insert(slot.name);
  }
  write_safetensors(shard, tensors, {{"format", "pt"}});
  return names;
}

// MTP's copies of the embedding and the head, which V3's files have, are read as the main model's.
void check_copies(const Json& index, const Config& config, const fs::path& folder) {
  const Json& shards = index.at("weight_map");
  const std::string mtp = fmt::format("model.layers.{}.", config.num_hidden_layers);
  for (const auto& [copy, original] :
       {std::pair(mtp + "embed_tokens.weight", "model.embed_tokens.weight"),
        std::pair(mtp + "shared_head.head.weight", "lm_head.weight")}) {
    if (!shards.contains(copy) || !shards.contains(original)) continue;
    const auto copies = Safetensors::open(folder / shards.at(copy).get<std::string>());
    const auto originals = Safetensors::open(folder / shards.at(original).get<std::string>());
    const TensorView &a = copies.at(copy), &b = originals.at(original);
    if (a.dtype != b.dtype || a.num_bytes() != b.num_bytes() ||
        std::memcmp(a.data, b.data, a.num_bytes()) != 0)
      fail("{}: {} is not what {} is; V3.2 has one of them for both", folder.string(), copy,
           original);
  }
}

void write_target(const DsaConversion& options, const Json& config_json, const fs::path& target) {
  Json index = weight_map(options.source);
  for (const auto& entry : fs::directory_iterator(options.source)) {
    const std::string name = entry.path().filename();
    if (entry.is_regular_file() && name != "config.json" && name != kIndexFile &&
        name != kChecksumFile)
      link_or_copy(entry.path(), target / name);
  }
  const Config config = parse_config(config_json, "config.json");
  for (const auto& name : write_indexers(config, options.seed, target / kIndexerShard)) {
    if (index["weight_map"].contains(name))
      fail("{}: holds {} and so has an indexer already; expected a model without",
           options.source.string(), name);
    index["weight_map"][name] = kIndexerShard;
  }
  index["metadata"].erase("total_size");
  base::write_file_atomically(target / kIndexFile, index.dump(2) + "\n");
  base::write_file_atomically(target / "config.json", config_json.dump(2) + "\n");
  load_checkpoint(target);  // throws where a tensor is missing or has another shape
  check_copies(index, config, target);
}

// Beside the target, and gone at the end unless it has the target's name by then.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(fs::path path) : path_(std::move(path)) {
    if (path_.has_parent_path()) fs::create_directories(path_.parent_path());
    if (!fs::create_directory(path_)) fail("{}: is there already; remove it", path_.string());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;

  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// The file that a file of the copy stands for: what is wrong with a copy is wrong with the source;
// what has none there cannot be written to the target.
fs::path original_of(const DsaConversion& options, const std::string& file) {
  if (fs::exists(options.source / file)) return options.source / file;
  return file == kIndexFile ? options.source / "model.safetensors" : options.target / file;
}

std::string in_terms_of_originals(const DsaConversion& options, const fs::path& copy,
                                  std::string message) {
  const std::string name = copy.string();
  for (size_t at = message.find(name); at != message.npos; at = message.find(name, at)) {
    size_t end = at + name.size();
    fs::path meant = options.source;
    if (message[end] == '/') {
      const size_t begin = end + 1;
      end = std::min(message.size(), message.find_first_of(": ", begin));
      meant = original_of(options, message.substr(begin, end - begin));
    }
    message.replace(at, end - at, meant.string());
    at += meant.string().size();
  }
  return message;
}

}  // namespace

void convert_to_dsa(const DsaConversion& given) {
  DsaConversion options = given;
  if (!options.target.has_filename()) options.target = options.target.parent_path();  // "folder/"
  const Json config = converted_config(options);
  if (fs::exists(options.target))
    fail("{}: is there already; name a folder that is not", options.target.string());
  const TemporaryFolder temporary(fmt::format("{}.tmp.{}", options.target.string(), ::getpid()));
  try {
    write_target(options, config, temporary.path());
  } catch (const Error& error) {
    throw Error(in_terms_of_originals(options, temporary.path(), error.what()));
  }
  fs::rename(temporary.path(), options.target);
}

}  // namespace fathom::model
