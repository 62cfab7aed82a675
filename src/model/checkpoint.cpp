#include "model/checkpoint.h"

#include <fmt/format.h>
#include <torch/csrc/autograd/grad_mode.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/file.h"
#include "kernels/fp8.h"
#include "model/ops.h"
#include "model/safetensors.h"
#include "model/verify.h"

namespace fathom::model {
namespace {

using torch::Tensor;

// All shards of a folder and where each tensor is: where the index says, which may leave out some.
class Shards {
 public:
  struct Found {
    const TensorView* view;
    const Safetensors* shard;
  };

  explicit Shards(const std::filesystem::path& folder) {
    const auto index = folder / "model.safetensors.index.json";
    if (std::filesystem::exists(index))
      open_index(folder, index);
    else
      open_single(folder);
    for (const auto& [file, shard] : shards_)
      for (const auto& [name, view] : shard.tensors())
        tensors_.emplace(name, Found{&view, &shard});  // where the index names no other
  }

  std::optional<Found> find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? std::nullopt : std::optional(it->second);
  }

  std::set<std::string> names() const {
    std::set<std::string> names;
    for (const auto& [name, found] : tensors_) names.insert(name);
    return names;
  }
  const std::string& description() const { return description_; }

 private:
  void open_single(const std::filesystem::path& folder) {
    const auto path = folder / "model.safetensors";
    description_ = path.string();
    if (!std::filesystem::exists(path) && has_shards(folder))
      fail(
          "{}: has shards but no model.safetensors.index.json, which says what is in them; copy "
          "it beside them",
          folder.string());
    shards_.emplace(path.filename().string(), Safetensors::open(path));
  }

  static bool has_shards(const std::filesystem::path& folder) {
    const std::filesystem::directory_iterator files(folder);
    return std::any_of(begin(files), end(files), [](const auto& entry) {
      return entry.path().extension() == ".safetensors";
    });
  }

  void open_index(const std::filesystem::path& folder, const std::filesystem::path& index) {
    description_ = index.string();
    const Json json = base::read_json_file(index);
    if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object())
      fail("{}: expected an object with \"weight_map\"", index.string());
    for (const auto& [name, file] : json["weight_map"].items()) {
      if (!file.is_string() || file.get<std::string>().empty() ||
          file.get<std::string>().find('/') != std::string::npos)
        fail("{}: weight_map[\"{}\"] is {}; expected a file name", index.string(), name,
             file.dump());
      const Safetensors& shard = open_shard(folder, file.get<std::string>(), name);
      const auto view = shard.tensors().find(name);
      if (view == shard.tensors().end())
        fail("{}: weight_map says that {} holds tensor {}, which it does not; get both again",
             index.string(), file.get<std::string>(), name);
      tensors_.emplace(name, Found{&view->second, &shard});
    }
  }

  const Safetensors& open_shard(const std::filesystem::path& folder, const std::string& file,
                                const std::string& tensor) {
    if (const auto it = shards_.find(file); it != shards_.end()) return it->second;
    if (!std::filesystem::exists(folder / file))
      fail("{}: shard {} is missing (tensor {} is in it); copy it beside the index", description_,
           file, tensor);
    return shards_.emplace(file, Safetensors::open(folder / file)).first->second;
  }

  std::map<std::string, Safetensors> shards_;
  std::map<std::string, Found> tensors_;
  std::string description_;
};

torch::Dtype torch_dtype(DType dtype, const std::string& name, const std::string& where) {
  switch (dtype) {
    case DType::kF32:
      return torch::kFloat32;
    case DType::kF16:
      return torch::kHalf;
    case DType::kBF16:
      return torch::kBFloat16;
    case DType::kF8E4M3:
      return torch::kByte;
    default:
      fail("{}: tensor {} has dtype {}; expected F32, F16, BF16 or F8_E4M3", where, name,
           dtype_name(dtype));
  }
}

// A tensor over the map, which lives as long as the tensor. Copied only if it lies misaligned.
Tensor as_tensor(const Shards::Found& found, const std::string& name, const std::string& where) {
  const torch::Dtype dtype = torch_dtype(found.view->dtype, name, where);
  auto file = found.shard->file();
  const Tensor mapped = torch::from_blob(
      const_cast<std::byte*>(found.view->data), found.view->shape,
      [file](void*) mutable { file.reset(); }, dtype);
  const auto address = reinterpret_cast<uintptr_t>(found.view->data);
  if (address % dtype_bytes(found.view->dtype) == 0) return mapped;
  Tensor copy = torch::empty(found.view->shape, dtype);
  std::memcpy(copy.data_ptr(), found.view->data, found.view->num_bytes());
  return copy;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

void check_shape(const TensorView& view, const std::vector<int64_t>& expected,
                 const std::string& name, const std::string& where) {
  if (view.shape != expected)
    fail("{}: tensor {} has shape {}; config.json asks for {}", where, name, shape_text(view.shape),
         shape_text(expected));
}

void load_scale(const TensorSlot& slot, const Shards& shards) {
  const std::string name = slot.name + "_scale_inv";
  const auto found = shards.find(name);
  if (!found)
    fail("{}: tensor {} is F8_E4M3 but {} is missing", shards.description(), slot.name, name);
  check_shape(*found->view, {(slot.shape[0] + 127) / 128, (slot.shape[1] + 127) / 128}, name,
              shards.description());
  *slot.scale_inv = as_tensor(*found, name, shards.description()).to(torch::kFloat32).contiguous();
}

// Returns whether the tensor is F8_E4M3.
bool load_slot(const TensorSlot& slot, const Shards& shards) {
  const std::string& where = shards.description();
  const auto found = shards.find(slot.name);
  if (!found)
    fail("{}: tensor {} is missing; config.json asks for shape {}", where, slot.name,
         shape_text(slot.shape));
  check_shape(*found->view, slot.shape, slot.name, where);
  Tensor tensor = as_tensor(*found, slot.name, where);
  const bool is_fp8 = tensor.scalar_type() == torch::kByte;
  if (is_fp8 && !slot.may_be_fp8)
    fail("{}: tensor {} has dtype F8_E4M3; expected BF16 or F32", where, slot.name);
  if (is_fp8) load_scale(slot, shards);
  // Vectors are few bytes and the kernels read them as f32.
  const bool is_vector = slot.shape.size() == 1;
  *slot.tensor = is_vector ? tensor.to(torch::kFloat32) : tensor;
  return is_fp8;
}

// Tensors that a checkpoint may hold beyond ours: the MTP layer's copies of embedding and head.
bool is_known_duplicate(const std::string& name) {
  return name.ends_with(".embed_tokens.weight") || name.ends_with(".shared_head.head.weight") ||
         name.ends_with(".rotary_emb.inv_freq");
}

void refuse_unknown_tensors(const std::vector<TensorSlot>& slots, const Shards& shards) {
  auto names = shards.names();
  for (const TensorSlot& slot : slots) {
    names.erase(slot.name);
    if (slot.may_be_fp8) names.erase(slot.name + "_scale_inv");
  }
  for (const std::string& name : names)
    if (!is_known_duplicate(name))
      fail("{}: tensor {} is not part of the model that config.json describes",
           shards.description(), name);
}

Tensor widened(const Tensor& weight, const Tensor& scale_inv) {
  if (weight.scalar_type() != torch::kByte) return weight.to(torch::kFloat32).clone();
  const auto view = ops::weight_view({weight, scale_inv});
  Tensor wide = torch::empty({view.rows, view.cols});
  kernels::widen_rows(view, 0, view.rows, wide.data_ptr<float>());
  return wide;
}

DType file_dtype(torch::Dtype dtype) {
  return dtype == torch::kBFloat16 ? DType::kBF16 : DType::kF32;
}

// Saves `tensors` as one file, or as shards with an index; returns the files' names.
std::vector<std::string> save_tensors(const std::vector<NamedTensor>& tensors,
                                      const std::filesystem::path& folder,
                                      uint64_t max_shard_bytes) {
  std::vector<std::vector<NamedTensor>> shards(1);
  uint64_t shard_bytes = 0, total_bytes = 0;
  for (const NamedTensor& tensor : tensors) {
    const uint64_t bytes = tensor.view.num_bytes();
    if (shard_bytes > 0 && shard_bytes + bytes > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(tensor);
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  const std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (shards.size() == 1) {
    write_safetensors(folder / "model.safetensors", shards[0], metadata);
    return {"model.safetensors"};
  }
  Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", Json::object()}};
  std::vector<std::string> names;
  for (size_t i = 0; i < shards.size(); ++i) {
    const auto name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_safetensors(folder / name, shards[i], metadata);
    names.push_back(name);
    for (const NamedTensor& tensor : shards[i]) index["weight_map"][tensor.name] = name;
  }
  base::write_file_atomically(folder / "model.safetensors.index.json", index.dump(2) + "\n");
  names.emplace_back("model.safetensors.index.json");
  return names;
}

}  // namespace

Model load_checkpoint(const std::filesystem::path& folder) {
  if (!std::filesystem::is_directory(folder))
    fail("{}: no such folder; expected one with config.json and model.safetensors",
         folder.string());
  Model model{read_config(folder / "config.json"), {}};
  model.weights = empty_weights(model.config);
  const Shards shards(folder);
  const auto slots = tensor_slots(model.weights, model.config);
  bool has_fp8 = false;
  for (const TensorSlot& slot : slots) has_fp8 |= load_slot(slot, shards);
  refuse_unknown_tensors(slots, shards);
  if (has_fp8 != model.config.has_fp8_weights)
    fail("{}: {} tensor is F8_E4M3, but {} quantization_config; expected both or neither",
         shards.description(), has_fp8 ? "a" : "no",
         (folder / "config.json").string() + (has_fp8 ? " has no" : " has a"));
  return model;
}

void check_is_no_part_of(const std::filesystem::path& path, const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const auto name = entry.path().filename().string();
    const bool is_weights = name.starts_with("model") && name.ends_with(".safetensors");
    if (is_weights || name.ends_with(".json") || name == kChecksumFile)
      base::check_is_not_read(path, entry.path());
  }
}

Model load_checkpoint_for_training(const std::filesystem::path& folder) {
  Model model = load_checkpoint(folder);
  for (const TensorSlot& slot : tensor_slots(model.weights, model.config)) {
    *slot.tensor = widened(*slot.tensor, slot.scale_inv ? *slot.scale_inv : Tensor());
    if (slot.scale_inv) *slot.scale_inv = Tensor();
    slot.tensor->set_requires_grad(slot.role != Role::kExpertBias);
  }
  model.config.has_fp8_weights = false;
  return model;
}

void save_checkpoint(const Model& model, const std::filesystem::path& folder, torch::Dtype dtype,
                     uint64_t max_shard_bytes) {
  CHECK(dtype == torch::kBFloat16 || dtype == torch::kFloat32);
  const torch::NoGradGuard no_grad;
  std::filesystem::create_directories(folder);
  Weights weights = model.weights;  // shares the tensors; only the slots are new
  std::vector<Tensor> kept;
  std::vector<NamedTensor> tensors;
  for (const TensorSlot& slot : tensor_slots(weights, model.config)) {
    const bool stays_f32 = slot.role == Role::kExpertBias;
    kept.push_back(widened(*slot.tensor, slot.scale_inv ? *slot.scale_inv : Tensor())
                       .to(stays_f32 ? torch::kFloat32 : dtype)
                       .contiguous());
    tensors.push_back({slot.name,
                       {file_dtype(kept.back().scalar_type()), slot.shape,
                        static_cast<const std::byte*>(kept.back().data_ptr())}});
  }
  // Sums of what was there before are none of what is being written.
  std::filesystem::remove(folder / kChecksumFile);
  std::vector<std::string> names = save_tensors(tensors, folder, max_shard_bytes);
  Config config = model.config;
  config.has_fp8_weights = false;
  Json json = to_json(config);
  json["torch_dtype"] = dtype == torch::kBFloat16 ? "bfloat16" : "float32";
  base::write_file_atomically(folder / "config.json", json.dump(2) + "\n");
  names.emplace_back("config.json");
  add_checksums(folder, names);
}

std::shared_ptr<const Model> with_vocabulary(const Model& model, int64_t num_tokens) {
  CHECK(0 < num_tokens && num_tokens <= model.config.vocab_size, "{} of {} tokens", num_tokens,
        model.config.vocab_size);
  auto cut = std::make_shared<Model>(model);
  cut->config.vocab_size = num_tokens;
  for (Tensor* rows : {&cut->weights.embed_tokens, &cut->weights.lm_head.weight})
    *rows = rows->narrow(0, 0, num_tokens);
  return cut;
}

std::shared_ptr<const Model> load_model(const std::filesystem::path& folder) {
  return std::make_shared<const Model>(load_checkpoint(folder));
}

const Config& config_of(const Model& model) { return model.config; }

uint64_t num_parameters(const Model& model) {
  Weights weights = model.weights;
  uint64_t count = 0;
  for (const TensorSlot& slot : tensor_slots(weights, model.config))
    count += static_cast<uint64_t>(slot.tensor->numel());
  return count;
}

}  // namespace fathom::model
