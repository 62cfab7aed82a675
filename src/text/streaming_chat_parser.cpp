#include "text/streaming_chat_parser.h"

#include <algorithm>

#include "text/chat_markup.h"
#include "text/partial_marker.h"
#include "text/tool_call.h"
#include "text/utf8.h"

namespace fathom::text {
namespace {

// Bytes at the end that begin a UTF-8 character and do not finish it.
size_t partial_character(std::string_view text) {
  for (size_t back = std::min<size_t>(3, text.size()); back > 0; --back)
    if (next_utf8_sequence(text.substr(text.size() - back)).kind == Utf8Kind::kIncomplete)
      return back;
  return 0;
}

// Bytes at the end that begin the calls' marker and can be nothing else.
size_t partial_calls(std::string_view text) {
  const size_t size = partial_marker(text, markup::kCallsOpen);
  return size > markup::kCallsOpen.find(markup::kDsml) ? size : 0;
}

void move_front(size_t count, std::string& from, std::string& to) {
  to.append(from, 0, count);
  from.erase(0, count);
}

}  // namespace

StreamingChatParser::StreamingChatParser(ThinkingMode mode)
    : part_(mode == ThinkingMode::kThinking ? Part::kReasoning : Part::kContent) {}

ChatDelta StreamingChatParser::push(std::string_view text) {
  pending_ += text;
  ChatDelta delta;
  read(delta);
  return delta;
}

ChatDelta StreamingChatParser::finish(bool was_cut) {
  is_finishing_ = true;
  was_cut_ = was_cut;
  ChatDelta delta;
  read(delta);
  return delta;
}

void StreamingChatParser::read(ChatDelta& delta) {
  bool goes_on = true;
  while (goes_on) {
    if (part_ == Part::kReasoning)
      goes_on = read_text({{markup::kThinkEnd, Part::kContent}}, delta.reasoning_content);
    else if (part_ == Part::kContent)
      goes_on = read_text({{markup::kCallsOpen, Part::kToolCalls}}, delta.content);
    else if (part_ == Part::kAfterCalls)
      goes_on = read_text({}, delta.content);
    else if (part_ == Part::kToolCalls)
      goes_on = read_tool_calls(delta);
    else
      goes_on = false;
  }
  if (part_ == Part::kDone) pending_.clear();
}

bool StreamingChatParser::read_text(std::vector<Ending> endings, std::string& out) {
  endings.push_back({markup::kEos, Part::kDone});
  size_t first = std::string::npos;
  Ending found;
  for (const Ending& ending : endings) {
    const size_t at = pending_.find(ending.marker);
    if (at >= first) continue;
    first = at;
    found = ending;
  }
  if (first != std::string::npos) {
    move_front(first, pending_, out);
    pending_.erase(0, found.marker.size());
    part_ = found.next;
    return true;
  }
  size_t held = 0;
  if (!is_finishing_) {
    held = partial_character(pending_);
    for (const Ending& ending : endings)
      held = std::max(held, partial_marker(pending_, ending.marker));
  }
  if (was_cut_ && part_ == Part::kContent) held = partial_calls(pending_);
  move_front(pending_.size() - held, pending_, out);
  return false;
}

bool StreamingChatParser::read_tool_calls(ChatDelta& delta) {
  if (pending_.starts_with(markup::kCallsClose)) {
    pending_.erase(0, markup::kCallsClose.size());
    part_ = Part::kAfterCalls;
    return true;
  }
  using Status = ToolCallRead::Status;
  const ToolCallRead read = read_tool_call(pending_);
  if (read.status == Status::kWhole) {
    delta.tool_calls.push_back({num_tool_calls_++, read.call.name, read.call.arguments});
    pending_.erase(0, read.num_bytes);
    return true;
  }
  const bool could_close = markup::kCallsClose.starts_with(pending_);
  if (!is_finishing_ && (could_close || read.status == Status::kUnfinished)) return false;
  if (was_cut_ && (could_close || read.status == Status::kUnfinished)) {
    part_ = Part::kDone;
    return true;
  }
  // Not a call: what was held back is what the model said.
  if (num_tool_calls_ == 0) delta.content += markup::kCallsOpen;
  part_ = Part::kAfterCalls;
  return true;
}

}  // namespace fathom::text
