// The shape of models that tests make of random numbers.
#pragma once

#include "model/config.h"

namespace fathom::model {

// Every part of the architecture, as small as it can be. Dense within its context of 64 tokens: a
// test of sparse attention lowers index_topk.
inline Config tiny_config() {
  Config c;
  c.vocab_size = 50;
  c.hidden_size = 24;
  c.num_hidden_layers = 2;
  c.num_nextn_predict_layers = 1;
  c.intermediate_size = 32;
  c.max_position_embeddings = 64;
  c.num_attention_heads = 2;
  c.q_lora_rank = 16;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 8;
  c.qk_rope_head_dim = 4;
  c.v_head_dim = 8;
  c.index_n_heads = 2;
  c.index_head_dim = 8;
  c.index_topk = 64;
  c.first_k_dense_replace = 1;
  c.n_routed_experts = 4;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.moe_intermediate_size = 16;
  c.initializer_range = 0.3;
  return c;
}

}  // namespace fathom::model
