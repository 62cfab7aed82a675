// The files of web/, put into the program by src/server/CMakeLists.txt.
#pragma once

#include <string_view>

namespace fathom::server {

extern const std::string_view kIndexHtml;
extern const std::string_view kAppJs;
extern const std::string_view kStyleCss;

}  // namespace fathom::server
