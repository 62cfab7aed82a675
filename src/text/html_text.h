// The text of an HTML page as a person reads it: paragraphs, headings and list items on lines of
// their own, <pre> kept as it is, entities decoded; scripts, styles, navigation and side bars
// dropped. Takes any tag soup and never fails.
#pragma once

#include <string>
#include <string_view>

namespace fathom::text {

std::string html_to_text(std::string_view html);

}  // namespace fathom::text
