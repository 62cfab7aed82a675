#include "engine/prefix_cache.h"

#include <algorithm>

namespace fathom::engine {
namespace {

using kernels::kPageRows;

std::vector<int32_t> page_tokens(std::span<const int32_t> tokens, int64_t page) {
  const auto part = tokens.subspan(page * kPageRows, kPageRows);
  return {part.begin(), part.end()};
}

bool is_idle(const PrefixCache::Page& page) { return page.use_count() == 1; }

}  // namespace

std::vector<PrefixCache::Page> PrefixCache::find(std::span<const int32_t> tokens) {
  std::vector<Page> pages;
  Node* node = &root_;
  ++clock_;
  while ((std::ssize(pages) + 1) * kPageRows < std::ssize(tokens)) {
    const auto child = node->children.find(page_tokens(tokens, std::ssize(pages)));
    if (child == node->children.end()) break;
    node = child->second.get();
    node->last_used = clock_;
    pages.push_back(node->page);
  }
  return pages;
}

void PrefixCache::insert(std::span<const int32_t> tokens, std::span<const Page> pages) {
  Node* node = &root_;
  ++clock_;
  for (int64_t i = 0; i < std::ssize(pages) && (i + 1) * kPageRows <= std::ssize(tokens); ++i) {
    auto& child = node->children[page_tokens(tokens, i)];
    if (!child) {
      child = std::make_unique<Node>();
      child->page = pages[i];
      ++num_pages_;
    }
    child->last_used = clock_;
    node = child.get();
  }
}

int64_t PrefixCache::num_idle_pages() const {
  int64_t count = 0;
  const auto visit = [&](const auto& self, const Node& node) -> void {
    for (const auto& [tokens, child] : node.children) {
      count += is_idle(child->page);
      self(self, *child);
    }
  };
  visit(visit, root_);
  return count;
}

void PrefixCache::evict(int64_t num_idle) {
  int64_t excess = num_idle_pages() - num_idle;
  // A node with children in use is itself in use: sequences hold all their pages.
  while (excess > 0) {
    struct Leaf {
      int64_t last_used;
      Node* parent;
      std::vector<int32_t> tokens;
    };
    std::vector<Leaf> leaves;
    const auto visit = [&](const auto& self, Node& node) -> void {
      for (const auto& [tokens, child] : node.children) {
        if (child->children.empty() && is_idle(child->page))
          leaves.push_back({child->last_used, &node, tokens});
        self(self, *child);
      }
    };
    visit(visit, root_);
    if (leaves.empty()) return;
    std::sort(leaves.begin(), leaves.end(),
              [](const Leaf& a, const Leaf& b) { return a.last_used < b.last_used; });
    for (const Leaf& leaf : leaves) {
      if (excess == 0) return;
      leaf.parent->children.erase(leaf.tokens);
      --num_pages_;
      --excess;
    }
  }
}

}  // namespace fathom::engine
