// A file that one process at a time holds.
#pragma once

#include <filesystem>
#include <memory>

namespace fathom::base {

// The system releases it with the process, however that ends; the file stays.
class FileLock {
 public:
  // Null where another process, or another FileLock of this one, holds it. Throws Error where the
  // file cannot be locked at all.
  static std::unique_ptr<FileLock> try_lock(const std::filesystem::path& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  int descriptor_;
};

}  // namespace fathom::base
