#include "text/number_range.h"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <optional>
#include <string_view>

#include "base/check.h"

namespace fathom::text {
namespace {

using Rule = Grammar::Rule;
using Sequence = Grammar::Sequence;

// Of a number in all: doubles, which readers make of them, keep as many apart.
constexpr int kMostDigits = 15;
constexpr int kReadDecimals = 16;
constexpr int64_t kMostStep = 1000;
constexpr std::array kKeywords = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
                                  "multipleOf"};

// A number in units of 10^-decimals: 32 digits fit.
using Units = __int128;

constexpr Units power_of_ten(int64_t exponent) {
  Units power = 1;
  for (; exponent > 0; --exponent) power *= 10;
  return power;
}

constexpr Units kBeyond = power_of_ten(kMostDigits + kReadDecimals);  // of any that is written

// floor / 10^kReadDecimals is the greatest such number that is not above the one read.
struct ReadNumber {
  Units floor = 0;
  bool is_exact = true;
};

// Of a number as JSON writes it. Beyond kBeyond it makes no difference how far.
ReadNumber read_number(const std::string& text) {
  const size_t e = std::min(text.find_first_of("eE"), text.size());
  const size_t point = std::min(text.find('.'), e);
  const bool is_negative = text.starts_with('-');
  int64_t exponent = e < text.size() ? std::stoll(text.substr(e + 1)) : 0;
  ReadNumber number;
  int64_t left = exponent + static_cast<int64_t>(point) - is_negative + kReadDecimals;
  for (size_t i = is_negative; i < e; ++i) {
    if (i == point) continue;
    const int digit = text[i] - '0';
    if (left-- > 0)
      number.floor = std::min(number.floor * 10 + digit, kBeyond);
    else
      number.is_exact = number.is_exact && digit == 0;
  }
  for (; left > 0 && number.floor > 0 && number.floor < kBeyond; --left)
    number.floor = std::min(number.floor * 10, kBeyond);
  if (is_negative) number.floor = -number.floor - (number.is_exact ? 0 : 1);
  return number;
}

Units floor_divide(Units a, Units b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// The numbers from `least` to `greatest`, in units of 10^-kReadDecimals, that are multiples of
// `step`, in units of 10^-step_decimals. With a step all of its decimals are written, without one
// as many as are wanted.
struct UnitRange {
  Units least = -kBeyond, greatest = kBeyond;
  bool has_step = false;
  int step_decimals = 0;
  int64_t step = 1;
};

std::optional<ReadNumber> number_at(const Json& schema, const char* keyword,
                                    const std::string& where) {
  const auto it = schema.find(keyword);
  if (it == schema.end()) return {};
  if (!it->is_number()) fail("{}.{} is {}; expected a number", where, keyword, it->dump());
  return read_number(it->dump());
}

void read_step(const Json& schema, bool is_integer, const std::string& where, UnitRange& range) {
  const auto step = number_at(schema, "multipleOf", where);
  range.has_step = is_integer || step;
  if (!step) return;
  Units units = step->floor;
  range.step_decimals = kReadDecimals;
  for (; range.step_decimals > 0 && units % 10 == 0; --range.step_decimals) units /= 10;
  if (!step->is_exact || units <= 0 || units > kMostStep || range.step_decimals >= kMostDigits ||
      (is_integer && range.step_decimals > 0))
    fail("{}.multipleOf is {}; expected {}", where, schema.at("multipleOf").dump(),
         is_integer ? "an integer from 1 to 1,000"
                    : "a number above 0, of at most 1,000 without its point");
  range.step = static_cast<int64_t>(units);
}

UnitRange read_range(const Json& schema, bool is_integer, const std::string& where) {
  UnitRange range;
  read_step(schema, is_integer, where, range);
  if (const auto least = number_at(schema, "minimum", where))
    range.least = least->floor + (least->is_exact ? 0 : 1);
  if (const auto least = number_at(schema, "exclusiveMinimum", where))
    range.least = std::max(range.least, least->floor + 1);
  if (const auto greatest = number_at(schema, "maximum", where)) range.greatest = greatest->floor;
  if (const auto greatest = number_at(schema, "exclusiveMaximum", where))
    range.greatest = std::min(range.greatest, greatest->floor - (greatest->is_exact ? 1 : 0));
  return range;
}

// Rules of numbers without their sign, of one integer part's length after the other.
class DigitRules {
 public:
  DigitRules(Grammar& grammar, const UnitRange& range) : grammar_(grammar), range_(range) {}

  // Those from `least` >= 0 to `greatest` whose integer part has `num_digits` digits, if any.
  std::optional<Rule> numbers(Units least, Units greatest, int num_digits) {
    decimals_ = range_.has_step ? range_.step_decimals : kMostDigits - num_digits;
    length_ = num_digits + decimals_;
    if (length_ > kMostDigits) return {};
    may_start_with_zero_ = num_digits == 1;
    const Units unit = power_of_ten(kReadDecimals - decimals_);
    least = -floor_divide(-least, unit);
    greatest = floor_divide(greatest, unit);
    const Units first = may_start_with_zero_ ? 0 : power_of_ten(length_ - 1);
    const Units last = power_of_ten(length_) - 1;
    const Units multiple = floor_divide(std::min(greatest, last), range_.step) * range_.step;
    if (multiple < std::max(least, first)) return {};
    least_ = digits_of(std::max(least, first));
    greatest_ = digits_of(std::min(greatest, last));
    bounded_rules_.clear();
    return from({length_, least > first, greatest < last, 0});
  }

 private:
  // `num_left` digits may still come; so far they are those of the least, of the greatest number.
  struct Reading {
    int num_left;
    bool is_least, is_greatest;
    int64_t remainder;
    auto operator<=>(const Reading&) const = default;
  };

  std::string digits_of(Units number) const {
    std::string digits(length_, '0');
    for (int i = length_; i-- > 0; number /= 10) digits[i] += static_cast<int>(number % 10);
    return digits;
  }

  // Of what is read, what matters to the step where `num_left` digits follow.
  int64_t remainder_of(int64_t read, int num_left) const {
    int64_t step = range_.step;
    for (int64_t i = 0; i < num_left; ++i) step /= std::gcd(step, int64_t{10});
    return read % step;
  }

  // Whether some digits make it a multiple of the step, bounds aside.
  bool can_be_multiple(const Reading& reading) const {
    const Units digits = power_of_ten(reading.num_left), least = reading.remainder * digits;
    return floor_divide(least + digits - 1, range_.step) * range_.step >= least;
  }

  // Within both bounds whatever comes, how the number began makes no difference.
  Rule from(const Reading& reading) {
    const bool is_free = !reading.is_least && !reading.is_greatest && reading.num_left < length_;
    const auto [it, is_new] =
        (is_free ? free_rules_[decimals_] : bounded_rules_).try_emplace(reading, Rule{});
    if (!is_new) return it->second;
    const Rule rule = it->second = grammar_.add_rule();
    if (may_end(reading)) grammar_.add_alternative(rule, {});
    if (reading.num_left > 0) add_digits(rule, reading);
    return rule;
  }

  bool may_end(const Reading& reading) const {
    if (reading.remainder != 0) return false;
    if (reading.num_left == 0) return true;
    if (range_.has_step || reading.num_left > decimals_) return false;
    const std::string_view left = std::string_view(least_).substr(length_ - reading.num_left);
    return !reading.is_least || left.find_first_not_of('0') == left.npos;
  }

  // Digits that lead to the same reading stand in one alternative.
  void add_digits(Rule rule, const Reading& reading) {
    const int at = length_ - reading.num_left;
    char first = at == 0 && !may_start_with_zero_ ? '1' : '0', last = '9';
    if (reading.is_least) first = least_[at];
    if (reading.is_greatest) last = greatest_[at];
    std::map<Reading, Grammar::Bytes> bytes_to;
    for (char digit = first; digit <= last; ++digit) {
      const Reading next = {
          reading.num_left - 1, reading.is_least && digit == first,
          reading.is_greatest && digit == last,
          remainder_of(reading.remainder * 10 + (digit - '0'), reading.num_left - 1)};
      if (can_be_multiple(next)) bytes_to[next].set(static_cast<uint8_t>(digit));
    }
    const bool is_behind_point = reading.num_left == decimals_;
    for (const auto& [next, bytes] : bytes_to) {
      Sequence sequence = literal(is_behind_point ? "." : "");
      append(sequence, {{-1, bytes}, {from(next), {}}});
      grammar_.add_alternative(rule, std::move(sequence));
    }
  }

  Grammar& grammar_;
  const UnitRange& range_;
  int decimals_ = 0, length_ = 0;
  bool may_start_with_zero_ = false;
  std::string least_, greatest_;
  std::map<Reading, Rule> bounded_rules_;
  std::map<int, std::map<Reading, Rule>> free_rules_;  // by decimals
};

}  // namespace

Json number_bounds(const Json& schema) {
  Json bounds = Json::object();
  for (const char* keyword : kKeywords)
    if (schema.contains(keyword)) bounds[keyword] = schema.at(keyword);
  return bounds;
}

Rule number_rule(Grammar& grammar, const Json& schema, bool is_integer, const std::string& where) {
  const UnitRange range = read_range(schema, is_integer, where);
  const Rule rule = grammar.add_rule();
  DigitRules rules(grammar, range);
  const auto add = [&](const char* sign, Units least, Units greatest) {
    for (int num_digits = 1; num_digits <= kMostDigits; ++num_digits) {
      const std::optional<Rule> numbers = rules.numbers(least, greatest, num_digits);
      if (!numbers) continue;
      Sequence sequence = literal(sign);
      append(sequence, {{*numbers, {}}});
      grammar.add_alternative(rule, std::move(sequence));
    }
  };
  add("", std::max<Units>(range.least, 0), range.greatest);
  add("-", std::max<Units>(-range.greatest, 1), -range.least);
  if (grammar.alternatives(rule).empty())
    fail("{}: no number of at most {} digits is in the range that it asks for", where, kMostDigits);
  return rule;
}

}  // namespace fathom::text
