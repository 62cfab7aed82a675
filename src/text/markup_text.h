// Plain text from the lighter markups: reStructuredText (Linux, Python) and Perl's pod. What would
// only steer a page's layout goes; headings, paragraphs, lists and examples stay.
#pragma once

#include <string>
#include <string_view>

namespace fathom::text {

std::string rst_to_text(std::string_view rst);
std::string pod_to_text(std::string_view pod);

}  // namespace fathom::text
