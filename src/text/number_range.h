// The JSON numbers between bounds, or that are multiples of a step, as a grammar.
#pragma once

#include <string>

#include "base/json.h"
#include "text/grammar.h"

namespace fathom::text {

// Of `schema`, what bounds a number: minimum, maximum, exclusiveMinimum, exclusiveMaximum,
// multipleOf.
Json number_bounds(const Json& schema);

// The rule of the numbers that these allow: at most 15 digits in all, so that no reader's double is
// beyond an exclusive bound or between two steps; no exponent, no "-0"; where there is a step, as
// many digits behind the point as the step has. Throws Error naming the place where no number is
// allowed, or where the step, read without its point, is above 1,000.
Grammar::Rule number_rule(Grammar& grammar, const Json& schema, bool is_integer,
                          const std::string& where);

}  // namespace fathom::text
