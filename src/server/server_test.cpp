#include <gtest/gtest.h>

#include "server/api_error.h"
#include "server/api_request.h"
#include "server/stop_matcher.h"

namespace fathom::server {
namespace {

TEST(StopMatcher, FindsStopsAcrossPiecesAndHoldsBackOnlyWhatItMust) {
  StopMatcher stops({"END", "\n\n"});
  EXPECT_EQ(stops.push("some text E"), "some text ");
  EXPECT_EQ(stops.push("N"), "");
  EXPECT_EQ(stops.push("d\n"), "ENd");
  EXPECT_EQ(stops.push("x"), "\nx");
  EXPECT_EQ(stops.push("EN"), "");
  EXPECT_EQ(stops.push("D and more"), "");
  EXPECT_TRUE(stops.has_stopped());
  EXPECT_EQ(stops.push("nothing"), "");
  EXPECT_EQ(stops.finish(), "");
}

TEST(StopMatcher, GivesBackWhatWasNoStop) {
  StopMatcher stops({"STOP"});
  EXPECT_EQ(stops.push("STO"), "");
  EXPECT_EQ(stops.finish(), "STO");
}

// What comes after the marker is not the model's to stop at, nor is the marker's own beginning.
TEST(StopMatcher, FindsNothingFromTheMarkerOn) {
  StopMatcher stops({"\n\n", "name"}, "\n\n<calls>");
  EXPECT_EQ(stops.push("text\n"), "text");
  EXPECT_EQ(stops.push("\n<ca"), "");
  EXPECT_EQ(stops.push("lls>name="), "\n\n<calls>name=");
  EXPECT_EQ(stops.push("\n\nna"), "\n\nna");
  EXPECT_FALSE(stops.has_stopped());

  StopMatcher no_marker({"\n\n"}, "\n\n<calls>");
  EXPECT_EQ(no_marker.push("text\n\n<c"), "text");
  EXPECT_FALSE(no_marker.has_stopped());
  EXPECT_EQ(no_marker.push("ar>"), "");
  EXPECT_TRUE(no_marker.has_stopped());

  StopMatcher cut({"\n\n"}, "\n\n<calls>");
  EXPECT_EQ(cut.push("text\n\n<c"), "text");
  EXPECT_EQ(cut.finish(), "");
  EXPECT_TRUE(cut.has_stopped());

  StopMatcher before({"name"}, "\n\n<calls>");
  EXPECT_EQ(before.push("a name\n\n<calls>"), "a ");
  EXPECT_TRUE(before.has_stopped());
}

struct BadRequest {
  const char* body;
  const char* param;
  const char* message;
};

class BadRequestTest : public testing::TestWithParam<BadRequest> {};

TEST_P(BadRequestTest, IsRefusedByNameWith400) {
  const auto& [body, param, message] = GetParam();
  try {
    parse_chat_request(Json::parse(body), {.is_strict_reasoning = true});
    FAIL() << body;
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.param, param);
    EXPECT_EQ(std::string(error.what()).rfind(message, 0), 0u) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Table, BadRequestTest,
    testing::Values(
        BadRequest{"[]", "", "the request body must be a JSON object"},
        BadRequest{R"({"messages": []})", "messages", "messages must be an array of at least one"},
        BadRequest{R"({"messages": [{"role": "robot", "content": "x"}]})", "messages",
                   "messages[0].role: \"robot\" is not known"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "max_tokens": -3})",
                   "max_tokens", "max_tokens is -3; expected 1 to 2147483647"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"})",
                   "max_tokens", "max_tokens is \"many\"; expected an integer"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "seed": 1e20})", "seed",
                   "seed is 1e+20; expected an integer of less than 2^63"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "temperature": 3})",
                   "temperature", "temperature is 3; expected 0 to 2"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "top_p": 0})", "top_p",
                   "top_p is 0; expected above 0, at most 1"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "n": 2})", "n",
                   "n must be 1"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "stop": [""]})", "stop",
                   "stop must be a string or an array of strings, none of them empty"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "thinking": true})",
                   "thinking", "thinking must be"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "thinking": {"type": 5}})",
                   "thinking", "thinking must be"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}],
                       "response_format": {"type": 5}})",
                   "response_format", "response_format must be an object with a \"type\""},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}],
                       "response_format": {"type": "json_schema"}})",
                   "response_format",
                   "response_format of type json_schema needs json_schema.schema"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}],
                       "response_format": {"type": "json_schema", "json_schema": {"strict": true,
                         "schema": {"type": "array", "uniqueItems": true}}}})",
                   "response_format", "schema.uniqueItems cannot be held to while sampling"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required",
                       "tools": [{"type": "function", "function": {"name": "f"}}],
                       "response_format": {"type": "json_object"}})",
                   "response_format", "response_format cannot be kept where tool_choice asks"},
        BadRequest{R"({"messages": [{"role": "user", "content": [{"type": 5}]}]})", "messages",
                   "messages[0].content: only parts of type \"text\""},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2})",
                   "top_logprobs", "top_logprobs needs logprobs to be true"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "tool_choice": "required"})",
                   "tool_choice", "tool_choice asks for a call, but there are no tools"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "tool_choice": "any"})",
                   "tool_choice", "tool_choice is \"any\"; expected"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}],
                       "tools": [{"type": "function", "function": {"name": "f"}}],
                       "tool_choice": {"type": "function", "function": {"name": "g"}}})",
                   "tool_choice", "tool_choice names \"g\", which is none of the tools"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}],
                       "response_format": {"type": "json_schema", "json_schema": {"strict": true,
                         "schema": {"type": "string", "format": "colour"}}}})",
                   "response_format", "schema.format \"colour\" (known are "},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"},
                                    {"role": "assistant", "content": "y", "prefix": true}]})",
                   "messages", "messages[1].prefix: an answer that goes on with a given beginning"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "parallel_tool_calls": 1})",
                   "parallel_tool_calls", "parallel_tool_calls is 1; expected true or false"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"},
                         {"role": "assistant", "content": "", "tool_calls": [{"id": "c1",
                           "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                         {"role": "tool", "tool_call_id": "c2", "content": "r"}]})",
                   "messages",
                   "messages[2].tool_call_id is \"c2\"; expected the id of a call of messages[1]"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"},
                         {"role": "assistant", "content": "", "tool_calls": [{"id": "c1",
                           "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                         {"role": "tool", "tool_call_id": "c1", "content": "r"},
                         {"role": "tool", "tool_call_id": "c1", "content": "r"}]})",
                   "messages", "messages[3].tool_call_id is \"c1\", a second result"},
        BadRequest{R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"x": 1}]})",
                   "tools", "tools[0]: function is missing"},
        BadRequest{
            R"({"messages": [{"role": "user", "content": "q"},
                                    {"role": "assistant", "content": "", "tool_calls": []}],
                       "thinking": {"type": "enabled"}})",
            "", "Missing `reasoning_content` field in the assistant message at message index 1."}));

TEST(ChatRequest, ToolsGoIntoTheFirstSystemMessage) {
  const Json body = Json::parse(
      R"({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}],
          "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
          "stop": "x", "seed": 7, "thinking": {"type": "enabled"}})");
  const ApiRequest request = parse_chat_request(body, {});
  EXPECT_EQ(request.prompt.rfind("<｜begin▁of▁sentence｜>Be kind.\n\n## Tools", 0), 0u);
  EXPECT_NE(request.prompt.find("{\"name\": \"f\", \"parameters\": {}}"), std::string::npos);
  EXPECT_TRUE(request.prompt.ends_with("<｜User｜>q<｜Assistant｜><think>"));
  EXPECT_EQ(request.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(request.sampling.seed, 7u);
}

// The prompt does not say whose they are.
TEST(ChatRequest, ResultsStandInTheOrderOfTheirCalls) {
  Json body = Json::parse(
      R"({"messages": [{"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [
              {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
              {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "of f"},
            {"role": "tool", "tool_call_id": "c2", "content": "of g"},
            {"role": "user", "content": "and"}]})");
  const std::string prompt = parse_chat_request(body, {}).prompt;
  EXPECT_LT(prompt.find("of f"), prompt.find("of g"));
  std::swap(body["messages"][2], body["messages"][3]);
  EXPECT_EQ(parse_chat_request(body, {}).prompt, prompt);
  body["messages"][2].erase("tool_call_id");  // then the order given counts
  EXPECT_NE(parse_chat_request(body, {}).prompt, prompt);
}

TEST(Requests, EndWhereTheModelSaysAndWhereTheySay) {
  ApiRequestOptions options;
  options.stop_token_ids = {7};
  const Json body = {{"prompt", "x"}, {"stop_token_ids", {3, 5}}};
  EXPECT_EQ(parse_completion_request({{"prompt", "x"}}, options).stop_token_ids,
            std::vector<int32_t>{7});
  EXPECT_EQ(parse_completion_request(body, options).stop_token_ids,
            (std::vector<int32_t>{7, 3, 5}));
}

TEST(CompletionRequest, RefusesLogprobsOfTheEchoedPrompt) {
  try {
    parse_completion_request({{"prompt", "x"}, {"echo", true}, {"logprobs", 1}}, {});
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_EQ(error.param, "logprobs");
  }
}

TEST(Requests, SampleAsTheModelDoesWhereTheyDoNotSay) {
  ApiRequestOptions options;
  options.sampling = {.temperature = 0.5, .top_p = 0.25, .min_p = 0.125, .top_k = 9};
  const Json silent = {{"prompt", "x"}, {"messages", {{{"role", "user"}, {"content", "x"}}}}};
  Json loud = silent;
  loud.update(Json{{"temperature", 1.5}, {"top_p", 1}, {"min_p", 0}, {"top_k", 0}});
  for (const auto& parse : {parse_chat_request, parse_completion_request}) {
    const auto sampling = parse(silent, options).sampling, said = parse(loud, options).sampling;
    EXPECT_EQ(sampling.temperature, 0.5);
    EXPECT_EQ(sampling.top_p, 0.25);
    EXPECT_EQ(sampling.min_p, 0.125);
    EXPECT_EQ(sampling.top_k, 9);
    EXPECT_EQ(said.temperature, 1.5);
    EXPECT_EQ(said.top_p, 1);
    EXPECT_EQ(said.min_p, 0);
    EXPECT_EQ(said.top_k, 0);
  }
}

TEST(ChatRequest, StopStringsOfAMegabyteAreRefused) {
  Json body = {{"messages", {{{"role", "user"}, {"content", "x"}}}},
               {"stop", {std::string(1 << 20, 'a')}}};
  EXPECT_THROW(parse_chat_request(body, {}), ApiError);
}

TEST(RequestBody, DeepNestingIsRefusedWhereStringsDoNotCount) {
  const auto nested = [](int levels) {
    return std::string(levels, '[') + "\"\\\"[[[\"" + std::string(levels, ']');
  };
  EXPECT_NO_THROW(parse_request_body(nested(128)));
  EXPECT_THROW(parse_request_body(nested(129)), ApiError);
  EXPECT_THROW(parse_request_body(nested(1 << 20)), ApiError);
  EXPECT_NO_THROW(parse_request_body("[" + std::string(1, '"') + std::string(1000, '[') + "\"]"));
}

TEST(ChatRequest, DeepNestingInArgumentsIsRefused) {
  const Json call = {{"function", {{"name", "f"}, {"arguments", std::string(1 << 20, '[')}}}};
  const Json body = {{"messages",
                      {{{"role", "user"}, {"content", "x"}},
                       {{"role", "assistant"}, {"tool_calls", Json::array({call})}}}}};
  try {
    parse_chat_request(body, {});
    FAIL();
  } catch (const ApiError& error) {
    EXPECT_STREQ(error.what(), "messages[1].tool_calls: arguments: nests deeper than 128 levels");
  }
}

}  // namespace
}  // namespace fathom::server
