#include "text/python_json.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace fathom::text {
namespace {

TEST(PythonJson, PrintsAsPythonDoes) {
  const auto printed = [](const char* text) {
    return python_json(parse_json_exactly(text, "test"));
  };
  EXPECT_EQ(printed(R"({"a":[1,2.50,1e3,-0.0],"b":null,"c":true})"),
            R"({"a": [1, 2.5, 1000.0, -0.0], "b": null, "c": true})");
  EXPECT_EQ(printed("[1e16, 1e15, 1e-5, 0.0001, 123456789012345678901234567890]"),
            "[1e+16, 1000000000000000.0, 1e-05, 0.0001, 123456789012345678901234567890]");
  EXPECT_EQ(printed(R"(["\u4f60\n\"\u0001\u007f"])"), "[\"你\\n\\\"\\u0001\x7f\"]");
  EXPECT_EQ(printed("[{}, []]"), "[{}, []]");
}

TEST(PythonJson, RefusesWhatWouldOverflowTheStack) {
  const std::string deep(100000, '[');
  EXPECT_THROW(parse_json_exactly(deep, "test"), Error);
  EXPECT_THROW(parse_json_exactly("{\"a\": ", "test"), Error);
  EXPECT_THROW(parse_json_exactly("[1e999]", "test"), Error);
}

TEST(PythonJson, PrintsBytesThatAreNotText) {
  EXPECT_EQ(python_json(Json("a\xff")), "\"a\xef\xbf\xbd\"");
}

}  // namespace
}  // namespace fathom::text
