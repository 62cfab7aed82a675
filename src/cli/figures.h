// What a benchmark measured, for people or for programs.
#pragma once

#include "base/json.h"

namespace fathom::cli {

// As one JSON object, or as a table of dotted names.
void print_figures(const Json& figures, bool is_json);

}  // namespace fathom::cli
