#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace fathom::base {

std::string read_file(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail("{}: cannot open: {}", path.string(), std::strerror(errno));
  std::string content;
  char buffer[1 << 16];
  ssize_t count;
  while ((count = ::read(descriptor, buffer, sizeof buffer)) > 0) content.append(buffer, count);
  const int error = errno;
  ::close(descriptor);
  if (count < 0) fail("{}: cannot read: {}", path.string(), std::strerror(error));
  return content;
}

AtomicFile::AtomicFile(std::filesystem::path path)
    : path_(std::move(path)), temporary_(path_.string() + ".tmp." + std::to_string(::getpid())) {
  // A rename would put the file in the place of a device, a pipe or a socket.
  std::error_code ignored;
  const auto target = std::filesystem::status(path_, ignored);
  if (std::filesystem::exists(target) && !std::filesystem::is_regular_file(target))
    fail("{}: is a folder, a device or a pipe; expected a file's name", path_.string());
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor_ >= 0) return;
  const std::string cause = std::strerror(errno);
  const auto folder = path_.parent_path();
  if (errno == ENOENT && !folder.empty() && !std::filesystem::exists(folder, ignored))
    fail("{}: there is no folder {}; make it first", path_.string(), folder.string());
  fail("{}: cannot create: {}", path_.string(), cause);
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(temporary_.c_str());
}

void AtomicFile::write(const void* data, size_t num_bytes) {
  const char* bytes = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t count = ::write(descriptor_, bytes, num_bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("{}: cannot write: {}", path_.string(), std::strerror(errno));
    bytes += count;
    num_bytes -= static_cast<size_t>(count);
  }
}

void AtomicFile::commit() {
  CHECK(descriptor_ >= 0, "{} committed twice", path_.string());
  if (::fsync(descriptor_) != 0) fail("{}: cannot sync: {}", path_.string(), std::strerror(errno));
  ::close(descriptor_);
  descriptor_ = -1;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    ::unlink(temporary_.c_str());
    fail("{}: cannot rename into place: {}", path_.string(), std::strerror(error));
  }
}

void write_file_atomically(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void check_is_not_read(const std::filesystem::path& path, const std::filesystem::path& input) {
  std::error_code error;  // neither need be there
  if (std::filesystem::equivalent(path, input, error) && !error)
    fail("{}: is read from here; write to another file", path.string());
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // A pipe in a file's place is refused below instead of waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) fail("{}: cannot open: {}", path.string(), std::strerror(errno));
  struct stat status;
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    fail("{}: not a regular file", path.string());
  }
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  const auto size = static_cast<size_t>(status.st_size);
  if (size > 0) {
    void* address = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
    const int error = errno;
    ::close(descriptor);
    if (address == MAP_FAILED) fail("{}: cannot map: {}", path.string(), std::strerror(error));
    file->bytes_ = {static_cast<const std::byte*>(address), size};
  } else {
    ::close(descriptor);
  }
  return file;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace fathom::base
