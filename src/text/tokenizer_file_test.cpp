#include "text/tokenizer_file.h"

#include <gtest/gtest.h>

#include <functional>

#include "text/test_tokenizers.h"

namespace fathom::text {
namespace {

struct Refusal {
  const char* what;
  std::function<void(Json&)> change;
  const char* message;
};

const Refusal kRefusals[] = {
    {"WordPiece", [](Json& f) { f["model"]["type"] = "WordPiece"; },
     "t: model.type: WordPiece is not supported; only BPE is"},
    {"Unigram", [](Json& f) { f["model"]["type"] = "Unigram"; },
     "t: model.type: Unigram is not supported; only BPE is"},
    {"byte_fallback", [](Json& f) { f["model"]["byte_fallback"] = true; },
     "t: model.byte_fallback: true is not supported; only false is"},
    {"ignore_merges", [](Json& f) { f["model"]["ignore_merges"] = true; },
     "t: model.ignore_merges: true is not supported; only false is"},
    {"dropout", [](Json& f) { f["model"]["dropout"] = 0.1; },
     "t: model.dropout: 0.1 is not supported; only null is"},
    {"unk_token", [](Json& f) { f["model"]["unk_token"] = "<unk>"; },
     "t: model.unk_token: \"<unk>\" is not supported; only null is"},
    {"suffix", [](Json& f) { f["model"]["end_of_word_suffix"] = "</w>"; },
     "t: model.end_of_word_suffix: \"</w>\" is not supported; only \"\" is"},
    {"normalizer",
     [](Json& f) {
       f["normalizer"] = {{"type", "NFC"}};
     },
     "t: normalizer: normalizer NFC is not supported; only null or an empty Sequence is"},
    {"normalizers",
     [](Json& f) {
       f["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}};
     },
     "t: normalizer: normalizer {\"type\":\"Lowercase\"} is not supported; only null or an empty "
     "Sequence is"},
    {"truncation",
     [](Json& f) {
       f["truncation"] = {{"max_length", 5}};
     },
     "t: truncation: {\"max_length\":5} is not supported; only null is"},
    {"Metaspace",
     [](Json& f) {
       f["pre_tokenizer"] = {{"type", "Metaspace"}};
     },
     "t: pre_tokenizer: Metaspace is not supported; only a Sequence of Split stages and a "
     "ByteLevel is"},
    {"Digits",
     [](Json& f) {
       f["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}};
     },
     "t: pre_tokenizer.pretokenizers[0]: pre-tokenizer Digits is not supported here; only Split, "
     "and ByteLevel as the last"},
    {"no ByteLevel", [](Json& f) { f["pre_tokenizer"]["pretokenizers"].erase(1); },
     "t: pre_tokenizer.pretokenizers: must end in a ByteLevel stage"},
    {"Removed", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "Removed"; },
     "t: pre_tokenizer.pretokenizers[0].behavior: \"Removed\" is not supported; only \"Isolated\" "
     "is"},
    {"string pattern",
     [](Json& f) {
       f["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"String", " "}};
     },
     "t: pre_tokenizer.pretokenizers[0].pattern.Regex: missing"},
    {"prefix space",
     [](Json& f) { f["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true; },
     "t: pre_tokenizer.pretokenizers[1].add_prefix_space: true is not supported; only false is"},
    {"own regex", [](Json& f) { f["pre_tokenizer"]["pretokenizers"][1].erase("use_regex"); },
     "t: pre_tokenizer.pretokenizers[1].use_regex: missing, expected false"},
    {"bad regex",
     [](Json& f) { f["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "a("; },
     "t: pre_tokenizer: regular expression 'a(': missing closing parenthesis at byte 2"},
    {"decoder", [](Json& f) { f["decoder"]["type"] = "Metaspace"; },
     "t: decoder: Metaspace is not supported; only ByteLevel is"},
    {"post-processor",
     [](Json& f) {
       f["post_processor"] = {{"type", "BertProcessing"}};
     },
     "t: post_processor: BertProcessing is not supported; only ByteLevel and TemplateProcessing "
     "are"},
    {"post-processors",
     [](Json& f) {
       f["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "Odd"}}}}};
     },
     "t: post_processor.processors[0]: Odd is not supported; only ByteLevel and "
     "TemplateProcessing are"},
    {"neither type nor merges",
     [](Json& f) {
       f["model"].erase("type");
       f["model"].erase("merges");
     },
     "t: model.merges: missing"},
    {"lstrip", [](Json& f) { f["added_tokens"][1]["lstrip"] = true; },
     "t: added_tokens[1].lstrip: true is not supported; only false is"},
    {"rstrip", [](Json& f) { f["added_tokens"][0]["rstrip"] = true; },
     "t: added_tokens[0].rstrip: true is not supported; only false is"},
    {"single_word", [](Json& f) { f["added_tokens"][0]["single_word"] = true; },
     "t: added_tokens[0].single_word: true is not supported; only false is"},
    {"same content", [](Json& f) { f["added_tokens"][1]["content"] = "<a>"; },
     "t: added_tokens[1]: the content is given twice"},
    {"empty content", [](Json& f) { f["added_tokens"][1]["content"] = ""; },
     "t: added_tokens[1].content: expected a string that is not empty, found \"\""},
    {"added id taken", [](Json& f) { f["added_tokens"][1]["id"] = 257; },
     "t: model.vocab: id 257 is 'll', but the added token of this id is '<a><b>'"},
    {"id twice", [](Json& f) { f["model"]["vocab"]["ll"] = 256; },
     "t: model.vocab: id 256 is given twice"},
    {"negative id", [](Json& f) { f["model"]["vocab"]["ll"] = -4; },
     "t: model.vocab.ll: expected a token id from 0 to 16777216, found -4"},
    {"not byte level", [](Json& f) { f["model"]["vocab"]["x y"] = 300; },
     "t: model.vocab: 'x y' is neither in the byte-level alphabet nor an added token"},
    {"missing byte", [](Json& f) { f["model"]["vocab"].erase("z"); },
     "t: model.vocab: has no token for the byte 0x7a; a byte-level vocabulary has all 256"},
    {"unknown merge", [](Json& f) { f["model"]["merges"].push_back("l o"); },
     "t: model.merges[3]: 'lo' is not in the vocabulary"},
    {"broken merge", [](Json& f) { f["model"]["merges"].push_back("ll"); },
     "t: model.merges[3]: expected two tokens with a space between them, found \"ll\""},
    {"odd merge", [](Json& f) { f["model"]["merges"].push_back(5); },
     "t: model.merges[3]: expected \"a b\" or [\"a\", \"b\"], found 5"},
    {"no model", [](Json& f) { f.erase("model"); }, "t: model: missing"},
    {"list", [](Json& f) { f = Json::array(); }, "t: expected an object, found []"},
};

TEST(TokenizerFile, RefusesOtherKindsByName) {
  EXPECT_NO_THROW(Tokenizer::parse(small_tokenizer_json().dump(), "t"));
  for (const Refusal& refusal : kRefusals) {
    Json file = small_tokenizer_json();
    refusal.change(file);
    try {
      Tokenizer::parse(file.dump(), "t");
      ADD_FAILURE() << refusal.what << " was accepted";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), refusal.message);
    }
  }
}

TEST(TokenizerFile, PostProcessorsThatAddSpecialTokensAreLeftOut) {
  Json file = small_tokenizer_json();
  file["post_processor"] = {
      {"type", "Sequence"},
      {"processors", {{{"type", "ByteLevel"}}, {{"type", "TemplateProcessing"}}}}};
  EXPECT_EQ(Tokenizer::parse(file.dump(), "t").encode("hello"),
            Tokenizer::parse(small_tokenizer_json().dump(), "t").encode("hello"));
}

TEST(TokenizerFile, RefusesWhatIsNotJson) {
  try {
    Tokenizer::parse("{\"model\": ", "t");
    FAIL();
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("t: not valid JSON at line 1, column 11: "))
        << error.what();
  }
  EXPECT_THROW(Tokenizer::load("/nonexistent/tokenizer.json"), Error);
}

TEST(TokenizerFile, WritesWhatItReads) {
  const TokenizerParts parts = read_tokenizer_parts(small_tokenizer_json().dump(), "t");
  const std::string written = write_tokenizer_json(parts);
  const TokenizerParts again = read_tokenizer_parts(written, "written");
  EXPECT_EQ(again.splits, parts.splits);
  EXPECT_EQ(again.tokens, parts.tokens);
  EXPECT_EQ(again.merges.size(), 3u);
  EXPECT_EQ(again.merges[2].merged, 258);
  EXPECT_EQ(write_tokenizer_json(again), written);
}

}  // namespace
}  // namespace fathom::text
