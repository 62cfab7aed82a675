// Pages of past requests, found again by the tokens they begin with: a tree whose edges are pages
// of 64 tokens. Exact: tokens are compared, not hashed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "model/kv_cache.h"

namespace fathom::engine {

class PrefixCache {
 public:
  using Page = std::shared_ptr<model::CachePage>;

  // The pages of the longest known beginning of `tokens`; at least one token is left to compute.
  std::vector<Page> find(std::span<const int32_t> tokens);

  // Keeps the full pages of a sequence. Where the same tokens are known already, the known page
  // stays.
  void insert(std::span<const int32_t> tokens, std::span<const Page> pages);

  int64_t num_pages() const { return num_pages_; }
  // Those that no sequence uses: what eviction could free.
  int64_t num_idle_pages() const;
  // Drops the idle pages that were used the longest ago, ends of sequences first, until at most
  // `num_idle` are left.
  void evict(int64_t num_idle);

 private:
  struct Node;
  using Children = std::map<std::vector<int32_t>, std::unique_ptr<Node>>;
  struct Node {
    Page page = {};
    Node* parent = nullptr;
    Children::iterator at = {};  // where it stands among its parent's children
    int64_t last_used = 0;
    Children children = {};
  };
  Node root_;
  int64_t num_pages_ = 0;
  int64_t clock_ = 0;
};

}  // namespace fathom::engine
