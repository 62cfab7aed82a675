#include "cli/model_folder.h"

namespace fathom::cli {

std::filesystem::path bundled_model() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto beside = program.parent_path().parent_path() / "models" / "nano";
  if (!error && std::filesystem::exists(beside / "config.json"))
    return std::filesystem::proximate(beside);
  return std::filesystem::path("models") / "nano";
}

}  // namespace fathom::cli
