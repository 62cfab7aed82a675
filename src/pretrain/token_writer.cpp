#include "pretrain/token_writer.h"

#include <fmt/format.h>

#include <utility>

#include "base/file.h"
#include "model/safetensors.h"

namespace fathom::pretrain {

TokenWriter::TokenWriter(std::filesystem::path folder, std::string split, int64_t vocab_size,
                         int64_t shard_tokens)
    : folder_(std::move(folder)),
      split_(std::move(split)),
      shard_tokens_(shard_tokens),
      is_narrow_(vocab_size <= 65536) {
  std::filesystem::create_directories(folder_);
}

void TokenWriter::add_document(std::span<const int32_t> ids) {
  ++num_documents_;
  tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  if (static_cast<int64_t>(tokens_.size()) >= shard_tokens_) flush();
}

void TokenWriter::flush() {
  if (tokens_.empty()) return;
  const auto count = static_cast<int64_t>(tokens_.size());
  const std::vector<uint16_t> narrow(tokens_.begin(), tokens_.end());
  const model::TensorView view{is_narrow_ ? model::DType::kU16 : model::DType::kI32,
                               {count},
                               is_narrow_ ? reinterpret_cast<const std::byte*>(narrow.data())
                                          : reinterpret_cast<const std::byte*>(tokens_.data())};
  const std::string name = fmt::format("{}-{:05}.safetensors", split_, files_.size());
  const model::NamedTensor tensor{"tokens", view};
  model::write_safetensors(folder_ / name, {&tensor, 1});
  files_.push_back(name);
  num_tokens_ += count;
  tokens_.clear();
}

Json TokenWriter::finish(int64_t num_bytes) {
  flush();
  return {{"files", files_},
          {"num_documents", num_documents_},
          {"num_tokens", num_tokens_},
          {"num_bytes", num_bytes}};
}

void write_token_summary(const std::filesystem::path& folder, const Json& summary) {
  base::write_file_atomically(folder / "tokens.json", summary.dump(2) + "\n");
}

}  // namespace fathom::pretrain
