// Where each value of a recipe was written, for errors that name it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "pretrain/stage.h"

namespace fathom::pretrain {

struct RecipeSource {
  std::string name;                                   // of the file
  Stage stage = Stage::kDense;                        // whose values are read
  int64_t phase = 1;                                  // of the stage, from 1
  std::map<std::string, int64_t> lines = {};          // base::json_lines of the file; may be empty
  std::map<std::string, std::string> overrides = {};  // by key: "training.steps" -> "--set ..."

  // What the value of "section.key" was taken from: "--set training.steps=5", or "r.json:41", in
  // the stage's own section where it stands there. Of a key that is not there: where the object
  // begins that lacks it.
  std::string of(std::string_view key) const;
};

}  // namespace fathom::pretrain
