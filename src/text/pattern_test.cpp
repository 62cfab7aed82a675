#include "text/pattern.h"

#include <gtest/gtest.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/check.h"
#include "base/json.h"
#include "text/chat_markup.h"
#include "text/string_format.h"
#include "text/test_grammar.h"
#include "text/utf8.h"

namespace fathom::text {
namespace {

Grammar grammar_of(std::string_view pattern, StringWriting writing) {
  Grammar grammar;
  grammar.add_rule();
  grammar.add_alternative(Grammar::kStart,
                          {{pattern_rule(grammar, parse_pattern(pattern), writing), {}}});
  grammar.finish();
  return grammar;
}

std::string in_json(const std::string& text) {
  const std::string quoted = Json(text).dump(-1, ' ', false);
  return quoted.substr(1, quoted.size() - 2);
}

// The library's answer.
bool is_found(std::string_view pattern, const std::string& text) {
  int error = 0;
  size_t place = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_DOLLAR_ENDONLY | PCRE2_ALT_BSUX;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   options, &error, &place, nullptr);
  CHECK(code != nullptr, "{}", pattern);
  pcre2_match_data* match = pcre2_match_data_create_from_pattern(code, nullptr);
  const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0,
                                match, nullptr);
  pcre2_match_data_free(match);
  pcre2_code_free(code);
  return found > 0;
}

// Strings over a few characters, among them those that need an escape or several bytes.
std::string random_string(base::Random& random) {
  static const std::vector<std::string> kParts = {"a", "b", "c",        "A",  "7",
                                                  "-", "_", " ",        "\"", "\\",
                                                  "]", "$", "\xC3\xA9", "ab", "\xF0\x9F\x98\x80"};
  std::string text;
  for (int count = static_cast<int>(random.uniform() * 7); count > 0; --count)
    text += kParts[static_cast<size_t>(random.uniform() * kParts.size())];
  return text;
}

TEST(Pattern, DerivesTheStringsThatAnotherLibraryFindsItIn) {
  base::Random random(11, 0);
  for (
      const char* pattern :
      {"abc", "^abc$", "^a", "c$", "a|^b|c$", "^[a-c]+$", "^[^a-c]*$", "^.{2,3}$", "^(?:ab|c)*$",
       "^(a*)*b?$", "^((a|b?)*c?)+$", "^(a?b?c?)*$", "^(?<name>a|)b+?$", "^\\w+\\W\\w+$",
       "^\\D\\d$", "^\\S*$", "^[\\]\\\\-]+$", "^[a-]+$", "^[-a]+$", "^[\\w-]+$", "^\\u0061\\x62$",
       "^[\\u00e0-\\u00ff]$", "^[\\ud83d\\ude00]$|^b", "^\"", "\\\\", "^(a{0})b", "^(|a){3}b$", "",
       "^$", "^a{2}$", "^a{2,}$", "^(?:a|ab)(?:c|bc)$", "\\$$", "^(((((a)))))$",
       "^(a|b|c|7|A)(-|_)?(a+|b+)+$",
       // As people write them, of addresses and versions.
       R"re(^(([^<>()[\]\\.,;:\s@"]+(\.[^<>()[\]\\.,;:\s@"]+)*)|(".+"))@?((\[[0-9]{1,3}\])|(([a-zA-Z\-0-9]+\.?)+[a-zA-Z]{2,}))$)re",
       "^v?(0|[1-9]\\d*)?(?:[-_]((?:0|[1-9]\\d*|\\d*[a-zA-Z-][0-9a-zA-Z-]*)"
       "(?:\\.(?:0|[1-9]\\d*|\\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?$"}) {
    const Grammar grammar = grammar_of(pattern, StringWriting::kJson);
    int num_found = 0;
    std::string in_library = pattern;  // which has no escaped surrogates
    if (const size_t at = in_library.find("\\ud83d\\ude00"); at != in_library.npos)
      in_library.replace(at, 12, "\xF0\x9F\x98\x80");
    for (int i = 0; i < 400; ++i) {
      const std::string text = random_string(random);
      const bool is = is_found(in_library, text);
      num_found += is;
      EXPECT_EQ(derives(grammar, in_json(text)), is) << pattern << " in " << text;
    }
    GrammarMatcher matcher(std::make_shared<const Grammar>(grammar));
    for (int i = 0; i < 50; ++i) {
      const std::string text = random_text(matcher, random, 60);
      ASSERT_TRUE(Json::accept("\"" + text + "\"")) << pattern << " in " << text;
      EXPECT_TRUE(text.empty() ||
                  is_found(in_library, Json::parse("\"" + text + "\"").get<std::string>()))
          << pattern << " in " << text;
      num_found += !text.empty();
    }
    EXPECT_GT(num_found, 0) << pattern;
  }
}

TEST(Pattern, CharactersAreWrittenInOneWay) {
  const Grammar any = grammar_of("^[\\0-\\u{10FFFF}]$", StringWriting::kJson);
  const Grammar bare = grammar_of("^[\\0-\\u{10FFFF}]$", StringWriting::kBare);
  int num_bare = 0;
  for (uint32_t c = 0; c <= 0x10FFFF; c += c < 0x3000 ? 1 : 97) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(&text, c);
    EXPECT_TRUE(derives(any, c == 0x7F ? text : in_json(text))) << c;
    num_bare += !derives(bare, text);
  }
  EXPECT_EQ(num_bare, 0);
  for (const char* text :
       {"\n", "\"", "\\u0041", "\\/", "\xED\xA0\x80", "\xC0\x80", "ab", "\xF4\x90\x80\x80", "\xC3"})
    EXPECT_FALSE(derives(any, text)) << text;
}

// No parameter's text may hold the markup that ends it.
TEST(Pattern, BareStringsHoldNoMarkup) {
  const Grammar grammar = grammar_of("^<.*$", StringWriting::kBare);
  EXPECT_TRUE(derives(grammar, "<\"a\\b\t"));
  EXPECT_FALSE(derives(grammar, "<" + std::string(markup::kDsml)));
  EXPECT_THROW(grammar_of("^" + std::string(markup::kDsml), StringWriting::kBare), Error);
}

TEST(Pattern, SaysWhatItDoesNotFollowAndWhere) {
  const auto error = [](std::string_view pattern) {
    try {
      parse_pattern(pattern);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  EXPECT_EQ(error("a(?=b)"), "looking around, or an unknown kind of group, at character 3");
  EXPECT_EQ(error("(?<!a)b"), "looking around, or an unknown kind of group, at character 4");
  EXPECT_EQ(error("(?i)b"), "looking around, or an unknown kind of group, at character 2");
  EXPECT_EQ(error("(a)\\1"),
            "a back reference, boundary, property or unknown escape at character 5");
  EXPECT_EQ(error("a(^b)"), "^ and $ elsewhere than at the pattern's ends at character 3");
  EXPECT_EQ(error("a$b"), "^ and $ elsewhere than at the pattern's ends at character 2");
  EXPECT_EQ(error("a{2"),
            "a { that begins no {n}, {n,} or {n,m} (write \\{ for the character) at "
            "character 2");
  EXPECT_EQ(error("a{3,2}"), "a quantifier whose bounds are in the wrong order at character 7");
  EXPECT_EQ(error("a{5000}"), "a count above 4096 at character 6");
  for (const char* pattern :
       {"(a", "a)", "[a", "[b-a]", "[\\d-a]", "*a", "a**", "\\", "\\u12", "\\q", "\\pL", "\\bword",
        "\\u{110000}", "\\ud800", "(?<n", "[\\", "\xFF"})
    EXPECT_NE(error(pattern), "taken") << pattern;
  EXPECT_EQ(error(std::string(5000, 'a')), "more than 4096 bytes");
  EXPECT_NE(error(std::string(200, '(') + std::string(200, ')')), "taken");
}

// As deep as a pattern can make it, and as many readings as people ask for.
TEST(Pattern, LongOptionalPartsAndCountsWithinCountsAreFollowed) {
  std::string optional = "^";
  for (int i = 0; i < 2046; ++i) optional += "a?";
  const Grammar deep = grammar_of(optional + "$", StringWriting::kJson);
  EXPECT_TRUE(derives(deep, "aa"));
  EXPECT_FALSE(derives(deep, "b"));
  const std::string sentence = "This is a sentence of some forty letters. ";
  const Grammar sentences = grammar_of("^(?:.{2,50}[.!?] ?){1,5}$", StringWriting::kJson);
  EXPECT_TRUE(derives(sentences, sentence + sentence));
  EXPECT_FALSE(derives(sentences, sentence + "No end"));
}

// What may be nothing, within what may be nothing: the rules grow with the pattern, not with its
// powers.
TEST(Pattern, NestedRepetitionsStaySmall) {
  std::string pattern = "a?b?c?d?";
  for (int i = 0; i < 90; ++i) {
    pattern = "(?:" + pattern + ")*a?b?c?d?";
    if (i != 2) continue;
    const Grammar grammar = grammar_of("^" + pattern + "$", StringWriting::kJson);
    EXPECT_TRUE(derives(grammar, "abcdabcdddcba"));
    EXPECT_FALSE(derives(grammar, "abcde"));
  }
  EXPECT_NO_THROW(grammar_of("^" + pattern + "$", StringWriting::kJson));
}

TEST(StringFormat, HoldsWhatHasTheFormat) {
  struct Case {
    const char* format;
    std::vector<const char*> good, bad;
  };
  const std::vector<Case> cases = {
      {"date",
       {"2024-02-29", "2000-02-29", "1999-12-31", "0001-01-01", "2023-04-30"},
       {"2023-02-29", "1900-02-29", "2023-04-31", "2023-13-01", "2023-00-10", "2023-1-01",
        "0000-01-01", "0000-02-29", "2023-01-32"}},
      {"time",
       {"23:59:59Z", "00:00:00.123456+05:30"},
       {"24:00:00Z", "12:60:00Z", "12:00:60Z", "12:00:00", "12:00Z", "12:00:00.Z"}},
      {"date-time",
       {"2024-02-29T12:30:00Z", "1999-12-31T23:59:59.5-08:00"},
       {"2023-02-29T12:30:00Z", "2024-02-28 12:30:00Z", "2024-02-28"}},
      {"duration",
       {"P1D", "PT36H", "P1Y2M3DT4H5M6S", "P4W", "PT1M30S"},
       {"P", "PT", "1D", "P1D2Y", "P1Y3D", "P1WT1H", "PT1H30S"}},
      {"email",
       {"a@b.co", "first.last+tag@mail.example.org",
        "firstname.middlename.verylonglastname@example.com", "aaaaaaaaaaaaaaaaa.b@c.de"},
       {"a@b", "@b.co", "a@.co", "a b@c.de", "a..b@c.de", ".a@c.de", "a@-b.co"}},
      {"hostname",
       {"localhost", "a-b.example.com", "1.2", "ec2-203-0-113-25.compute-1.amazonaws.com",
        "my-long-load-balancer-name-1234567890.us-east-1.elb.amazonaws.com"},
       {"", "-a", "a-", "a..b", "a_b", ".a", "a."}},
      {"ipv4",
       {"0.0.0.0", "192.168.1.255"},
       {"256.1.1.1", "1.2.3", "01.2.3.4", "1.2.3.4.5", "1.2.3."}},
      {"ipv6",
       {"::", "::1", "1::", "2001:db8::8a2e:370:7334", "1:2:3:4:5:6:7:8", "::ffff:192.0.2.1",
        "1:2:3:4:5:6:1.2.3.4", "1::3:4:5:6:7:8", "1:2:3:4:5:6:7::"},
       {":", ":::", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "1::2::3",
        "12345::", "g::", "::1.2.3.256", "1:2:3:4:5:6:7:8::"}},
      {"uri",
       {"https://example.org/a?b=c#d", "mailto:a@b.co", "http://[::1]:8080/", "urn:isbn:0451450523",
        "file:///etc", "a:"},
       {"example.org", "//a/b", "http://a b", "http://a/%zz", "1a:b", "http://[::1", "a:#b#c"}},
      {"uuid",
       {"123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-426614174000"},
       {"123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400",
        "g23e4567-e89b-12d3-a456-426614174000"}},
  };
  for (const Case& test : cases) {
    ASSERT_NE(kKnownFormats.find(test.format), kKnownFormats.npos);
    const Grammar grammar = grammar_of(pattern_of_format(test.format), StringWriting::kJson);
    for (const char* text : test.good) EXPECT_TRUE(derives(grammar, text)) << test.format << text;
    for (const char* text : test.bad) EXPECT_FALSE(derives(grammar, text)) << test.format << text;
  }
  EXPECT_EQ(pattern_of_format("colour"), "");
}

}  // namespace
}  // namespace fathom::text
