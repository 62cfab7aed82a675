// Whether the files of a model folder are what was written.
#pragma once

#include <filesystem>
#include <span>

namespace fathom::model {

// Name of the list, one line a file as sha256sum writes and reads it: 64 hex digits, two spaces,
// the name.
inline constexpr const char* kChecksumFile = "SHA256SUMS";

// Reads every byte: of files that SHA256SUMS names, if there is one, to compare their sums; of all
// weights, to find values that are not finite and block factors that are not positive. Throws Error
// naming the file, and the tensor where it can.
void verify_checkpoint(const std::filesystem::path& folder);

// Writes the sums of `names` in `folder` into its SHA256SUMS, beside those of other files there.
void add_checksums(const std::filesystem::path& folder, std::span<const std::string> names);

}  // namespace fathom::model
