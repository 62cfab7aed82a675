// From the bytes of a file to clean documents: extraction by kind, then the same normal form for
// all.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

// Kinds: "text", "code", "html", "rst", "pod", "wordnet", "dictionary", "r-strings".
bool is_corpus_kind(std::string_view kind);

// The documents of one file, normalised, those kept that keep_document accepts. gzip is unpacked
// first whatever the name. `source` names the file in errors.
std::vector<std::string> extract_documents(std::string_view kind, std::string_view bytes,
                                           std::string_view source);

// Valid UTF-8 (what is not is read as Windows-1252), "\n" line ends, no control characters but tab
// and newline, no trailing spaces, at most two empty lines in a row, one newline at the end.
std::string normalise_text(std::string_view bytes);

// False for what would teach little: under 200 bytes, mostly numbers or signs, mostly not Latin
// script, or (in code) generated lines longer than a person writes.
bool keep_document(std::string_view kind, std::string_view text);

}  // namespace fathom::text
