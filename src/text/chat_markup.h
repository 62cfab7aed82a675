// The literal pieces of the V3.2 chat format.
#pragma once

#include <string_view>

namespace fathom::text::markup {

inline constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>";
inline constexpr std::string_view kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThink = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";
inline constexpr std::string_view kCallsTag = "\n\n<｜DSML｜function_calls";
inline constexpr std::string_view kCallsOpen = "\n\n<｜DSML｜function_calls>\n";
inline constexpr std::string_view kCallsClose = "</｜DSML｜function_calls>";
inline constexpr std::string_view kInvokeTag = "<｜DSML｜invoke";
inline constexpr std::string_view kInvokeEndTag = "</｜DSML｜invoke";
inline constexpr std::string_view kParameterTag = "<｜DSML｜parameter";
inline constexpr std::string_view kParameterEndTag = "/｜DSML｜parameter";
inline constexpr std::string_view kDsml = "｜DSML｜";

// Before and after the tools' JSON lines in a system message. Published with DeepSeek-V3.2 (MIT).
inline constexpr std::string_view kToolsBefore = R"(## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
)";
inline constexpr std::string_view kToolsAfter = "\n</functions>\n";
inline constexpr std::string_view kResponseFormat =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

}  // namespace fathom::text::markup
