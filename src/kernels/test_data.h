// Random matrices for kernel tests, with the alignment that a test asks for.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/array_view.h"
#include "base/check.h"
#include "base/random.h"
#include "kernels/index_key_pages.h"
#include "kernels/paged_rows.h"
#include "kernels/selected_keys.h"

namespace fathom::kernels {

struct TestMatrix {
  std::vector<float> storage;
  View2<float> view;

  // `misalign` floats before the first element; rows follow each other `padding` floats apart.
  TestMatrix(int64_t rows, int64_t cols, uint64_t seed, int64_t misalign = 0, int64_t padding = 0)
      : storage(misalign + rows * (cols + padding)),
        view(storage.data() + misalign, rows, cols, cols + padding) {
    base::Random random(seed);
    for (float& value : storage) value = static_cast<float>(random.normal());
  }
  TestMatrix(const TestMatrix&) = delete;
};

// Rows stored in pages, as a cache holds them.
struct TestPages {
  std::vector<std::byte> storage;
  std::vector<const std::byte*> pages;
  PagedRows rows;

  TestPages(View2<const float> values, const RowLayout& layout) {
    const int64_t page_bytes = kPageRows * layout.num_bytes();
    const int64_t num_pages = (values.rows + kPageRows - 1) / kPageRows;
    storage.resize(num_pages * page_bytes);
    // Not in the order of their addresses.
    for (int64_t p = 0; p < num_pages; ++p)
      pages.push_back(storage.data() + (num_pages - 1 - p) * page_bytes);
    rows = {layout, pages.data(), values.rows};
    for (int64_t s = 0; s < values.rows; ++s)
      store_row(layout, values[s], const_cast<std::byte*>(rows[s]));
  }
  TestPages(const TestPages&) = delete;
};

// An index key cache's pages.
struct TestIndexKeys {
  std::vector<std::vector<std::byte>> storage;
  std::vector<const std::byte*> pages;
  IndexKeyPages keys;

  TestIndexKeys(View2<const float> values, const IndexKeyLayout& layout) {
    for (int64_t s = 0; s < values.rows; ++s) {
      // What no key was stored in is NaN, whatever the format.
      if (s % kPageRows == 0) storage.emplace_back(layout.page_bytes(), std::byte{0xff});
      store_index_key(layout, values[s], s % kPageRows, storage.back().data());
    }
    for (const auto& page : storage) pages.push_back(page.data());
    keys = {layout, pages.data(), values.rows};
  }
  TestIndexKeys(const TestIndexKeys&) = delete;
};

// Memory whose end nothing may be read behind. The sanitizer does not see what tiles load.
class GuardedCopy {
 public:
  GuardedCopy(const void* data, size_t bytes) {
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t room = (bytes + page - 1) / page * page;
    size_ = room + page;
    begin_ = static_cast<std::byte*>(
        ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK(begin_ != MAP_FAILED && ::mprotect(begin_ + room, page, PROT_NONE) == 0, "no memory");
    data_ = begin_ + room - bytes;
    std::memcpy(data_, data, bytes);
  }
  ~GuardedCopy() { ::munmap(begin_, size_); }
  GuardedCopy(const GuardedCopy&) = delete;

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte *begin_, *data_;
  size_t size_;
};

// The same rows, nothing behind the last one of each page.
struct GuardedPages {
  std::vector<std::unique_ptr<GuardedCopy>> copies;
  std::vector<const std::byte*> pages;
  PagedRows rows;

  explicit GuardedPages(const PagedRows& from) {
    for (int64_t s = 0; s < from.num_rows; s += kPageRows) {
      const int64_t count = std::min(kPageRows, from.num_rows - s);
      copies.push_back(std::make_unique<GuardedCopy>(from[s], count * from.layout.num_bytes()));
      pages.push_back(copies.back()->as<std::byte>());
    }
    rows = {from.layout, pages.data(), from.num_rows};
  }
  GuardedPages(const GuardedPages&) = delete;
};

// The same keys, nothing behind each page.
struct GuardedIndexKeys {
  std::vector<std::unique_ptr<GuardedCopy>> copies;
  std::vector<const std::byte*> pages;
  IndexKeyPages keys;

  explicit GuardedIndexKeys(const IndexKeyPages& from) {
    for (int64_t s = 0; s < from.num_keys; s += kPageRows) {
      copies.push_back(std::make_unique<GuardedCopy>(from.page_of(s), from.layout.page_bytes()));
      pages.push_back(copies.back()->as<std::byte>());
    }
    keys = {from.layout, pages.data(), from.num_keys};
  }
  GuardedIndexKeys(const GuardedIndexKeys&) = delete;
};

// Lists of keys as kernels take them.
struct TestSelection {
  std::vector<int32_t> keys;
  std::vector<int64_t> begins = {0};

  TestSelection() = default;
  explicit TestSelection(const std::vector<std::vector<int32_t>>& keys_T) {
    for (const auto& list : keys_T) {
      keys.insert(keys.end(), list.begin(), list.end());
      begins.push_back(std::ssize(keys));
    }
  }
  SelectedKeys view() const { return {keys.data(), begins.data(), std::ssize(begins) - 1}; }
};

inline double max_difference(View2<const float> a, View2<const float> b) {
  double worst = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) {
      if (std::isnan(a[i][j]) || std::isnan(b[i][j])) return INFINITY;
      if (a[i][j] != b[i][j]) worst = std::max<double>(worst, std::abs(a[i][j] - b[i][j]));
    }
  return worst;
}

// |a - b| / |b|
inline double relative_error(View2<const float> a, View2<const float> b) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) {
      difference += std::pow(static_cast<double>(a[i][j]) - b[i][j], 2);
      size += std::pow(static_cast<double>(b[i][j]), 2);
    }
  return std::sqrt(difference / size);
}

}  // namespace fathom::kernels
