// The JSON numbers between bounds, or that are multiples of a step, as a grammar.
#pragma once

#include <string>

#include "base/json.h"
#include "text/grammar.h"

namespace fathom::text {

// Whether `schema` has one of minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf.
bool bounds_numbers(const Json& schema);

// The rule of the numbers that these allow: at most 16 digits before and behind the point, no
// exponent, no "-0"; where there is a step, as many digits behind the point as the step has. Throws
// Error naming the place where no number is allowed, or where the step, read without its point, is
// above 1,000.
Grammar::Rule number_rule(Grammar& grammar, const Json& schema, bool is_integer,
                          const std::string& where);

}  // namespace fathom::text
