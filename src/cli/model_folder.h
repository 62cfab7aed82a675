// Where the bundled model lies.
#pragma once

#include <filesystem>

namespace fathom::cli {

// models/nano beside the build folder that the program runs from, else below the current folder.
std::filesystem::path bundled_model();

}  // namespace fathom::cli
