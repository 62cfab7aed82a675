// Text inside of containers: gzip, WordNet's data files, dictd dictionaries, R's lazy-load data.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom::text {

// Inflates gzip (also several members in a row, as dictzip and logs have) or zlib data. Throws
// Error naming `source` on damaged data.
std::string inflate_all(std::string_view bytes, std::string_view source);

// WordNet data.* (wndb(5)): "physical entity (noun): an entity that has physical existence" a line,
// fifty lines a document.
std::vector<std::string> wordnet_glosses(std::string_view data_file);

// The articles of a dictd dictionary: an article begins in the first column, its body is indented.
std::vector<std::string> dictionary_articles(std::string_view dictionary);

// An R package's Rdata.rdb: each character vector is a document, an element a line. Objects of
// other types are passed over.
std::vector<std::string> r_character_vectors(std::string_view rdb, std::string_view source);

}  // namespace fathom::text
