#include "engine/prefix_cache.h"

#include <queue>

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
    const auto [at, is_new] = node->children.try_emplace(page_tokens(tokens, i));
    if (is_new) {
      at->second = std::make_unique<Node>(Node{pages[i], node, at});
      ++num_pages_;
    }
    node = at->second.get();
    node->last_used = clock_;
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
  if (excess <= 0) return;
  // Ends of sequences, the longest unused first. A node with children in use is itself in use:
  // sequences hold all their pages.
  const auto was_used_later = [](const Node* a, const Node* b) {
    return a->last_used > b->last_used;
  };
  std::priority_queue<Node*, std::vector<Node*>, decltype(was_used_later)> ends(was_used_later);
  const auto visit = [&](const auto& self, Node& node) -> void {
    for (const auto& [tokens, child] : node.children) {
      if (child->children.empty() && is_idle(child->page)) ends.push(child.get());
      self(self, *child);
    }
  };
  visit(visit, root_);
  for (; excess > 0 && !ends.empty(); --excess) {
    Node* const parent = ends.top()->parent;
    const auto at = ends.top()->at;
    ends.pop();
    parent->children.erase(at);
    --num_pages_;
    if (parent != &root_ && parent->children.empty() && is_idle(parent->page)) ends.push(parent);
  }
}

}  // namespace fathom::engine
