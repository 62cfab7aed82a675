#include <algorithm>

#include "text/chat_format.h"
#include "text/chat_markup.h"
#include "text/tool_call.h"

namespace fathom::text {
namespace {

// Length of the longest end of `text` that could be the beginning of `marker`.
size_t partial_marker(std::string_view text, std::string_view marker) {
  for (size_t length = std::min(text.size(), marker.size() - 1); length > 0; --length)
    if (text.ends_with(marker.substr(0, length))) return length;
  return 0;
}

// Bytes at the end that begin a UTF-8 character and do not finish it.
size_t partial_character(std::string_view text) {
  for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if (byte < 0x80) return 0;
    if (byte < 0xc0) continue;
    const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return length > back ? back : 0;
  }
  return 0;
}

void move_front(size_t count, std::string& from, std::string& to) {
  to.append(from, 0, count);
  from.erase(0, count);
}

bool could_begin(std::string_view text, std::string_view marker) {
  return text.substr(0, marker.size()) == marker.substr(0, text.size());
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

ChatDelta StreamingChatParser::finish() {
  is_finishing_ = true;
  ChatDelta delta;
  read(delta);
  return delta;
}

void StreamingChatParser::read(ChatDelta& delta) {
  bool goes_on = true;
  while (goes_on) {
    if (part_ == Part::kReasoning)
      goes_on = read_reasoning(delta);
    else if (part_ == Part::kToolCalls)
      goes_on = read_tool_calls(delta);
    else
      goes_on = read_content(delta);
  }
}

bool StreamingChatParser::read_reasoning(ChatDelta& delta) {
  const size_t end = pending_.find(markup::kThinkEnd);
  if (end != std::string::npos) {
    move_front(end, pending_, delta.reasoning_content);
    pending_.erase(0, markup::kThinkEnd.size());
    part_ = Part::kContent;
    return true;
  }
  const size_t held = is_finishing_ ? 0
                                    : std::max(partial_marker(pending_, markup::kThinkEnd),
                                               partial_character(pending_));
  move_front(pending_.size() - held, pending_, delta.reasoning_content);
  return false;
}

bool StreamingChatParser::read_content(ChatDelta& delta) {
  // Of a completion that has gone on after its calls, only the end marker is of interest.
  const bool may_call = part_ == Part::kContent;
  const size_t eos = pending_.find(markup::kEos);
  const size_t calls = may_call ? pending_.find(markup::kCallsOpen) : std::string::npos;
  if (calls < eos) {
    move_front(calls, pending_, delta.content);
    move_front(markup::kCallsOpen.size(), pending_, section_);
    part_ = Part::kToolCalls;
    return true;
  }
  if (eos != std::string::npos) {
    move_front(eos, pending_, delta.content);
    pending_.erase(0, markup::kEos.size());
    part_ = Part::kAfterCalls;
    return true;
  }
  size_t held = 0;
  if (!is_finishing_) {
    held = std::max(partial_marker(pending_, markup::kEos), partial_character(pending_));
    if (may_call) held = std::max(held, partial_marker(pending_, markup::kCallsOpen));
  }
  move_front(pending_.size() - held, pending_, delta.content);
  return false;
}

bool StreamingChatParser::read_tool_calls(ChatDelta& delta) {
  if (pending_.starts_with(markup::kCallsClose)) {
    pending_.erase(0, markup::kCallsClose.size());
    section_.clear();
    part_ = Part::kAfterCalls;
    return true;
  }
  const size_t end = pending_.find(markup::kInvokeClose);
  const bool could_go_on =
      could_begin(pending_, markup::kInvokeOpen) || could_begin(pending_, markup::kCallsClose);
  if (end == std::string::npos && could_go_on && !is_finishing_) return false;
  const size_t length = end == std::string::npos ? 0 : end + markup::kInvokeClose.size();
  const auto call = parse_tool_call(std::string_view(pending_).substr(0, length));
  if (call) {
    delta.tool_calls.push_back({num_tool_calls_++, call->name, call->arguments});
    pending_.erase(0, length);
    section_.clear();
    return true;
  }
  // Not a call: what was held back is what the model said.
  delta.content += section_;
  section_.clear();
  part_ = Part::kAfterCalls;
  return true;
}

}  // namespace fathom::text
