#include "text/corpus_text.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include "base/check.h"
#include "text/archive_text.h"
#include "text/html_text.h"
#include "text/markup_text.h"

namespace fathom::text {
namespace {

std::string deflate(const std::string& text, int window_bits) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, window_bits, 8, Z_DEFAULT_STRATEGY);
  std::string output(text.size() + 200, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = text.size();
  stream.next_out = reinterpret_cast<Bytef*>(output.data());
  stream.avail_out = output.size();
  deflate(&stream, Z_FINISH);
  output.resize(stream.total_out);
  deflateEnd(&stream);
  return output;
}
std::string gzip(const std::string& text) { return deflate(text, 15 + 16); }

std::string big_endian(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift);
  return bytes;
}

TEST(HtmlText, KeepsWhatAPersonReads) {
  struct Case {
    const char *html, *text;
  };
  const Case cases[] = {
      {"<p>One\n  two</p><p>Three</p>", "One two\n\nThree"},
      {"<h1>Title</h1>Text<br>line", "Title\n\nText\nline"},
      {"<ul><li>a</li><li>b <b>c</b></li></ul>", "- a\n- b c"},
      {"a &lt;b&gt; &amp;amp; &#233;&#xe9;&nbsp;&mdash; &bogus; &;", "a <b> &amp; éé — &bogus; &;"},
      {"<pre>if (a) {\n    b &lt; c;\n\n}</pre>after", "if (a) {\n    b < c;\n\n}\n\nafter"},
      {"<script>if (a < b) '<p>x</p>'</script><style>p > a {}</style>text", "text"},
      {"<head><title>t</title></head><body>b<!-- <p>no</p> -->c</body>", "bc"},
      {"<div class=\"a sphinxsidebar\"><div>in</div>side</div>out", "out"},
      {"<nav><ul><li>x</li></ul></nav>y", "y"},
      {"<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1  2\n3"},
      {"<a href=\"x>y\" title='<'>link</a>", "link"},
      {"1 < 2 and 3 > 2", "1 < 2 and 3 > 2"},
      {"<p class=related", ""},
      {"<div class=related><br>gone", ""},
      {"", ""},
  };
  for (const Case& c : cases) EXPECT_EQ(html_to_text(c.html), c.text) << c.html;
}

TEST(RstText, DropsLayoutKeepsText) {
  EXPECT_EQ(rst_to_text("Title\n=====\n\nSee :func:`~os.path.join` and `the docs <https://x>`_.\n"),
            "Title\n\nSee join and the docs.\n");
  EXPECT_EQ(rst_to_text("Use ``a_b`` here::\n\n    code = 1\n"),
            "Use ``a_b`` here:\n\n    code = 1\n");
  EXPECT_EQ(rst_to_text(".. _label:\n.. SPDX-License-Identifier: GPL-2.0\n\nText.\n"),
            "\n\nText.\n");
  EXPECT_EQ(rst_to_text(".. toctree::\n   :maxdepth: 2\n\n   a\n   b\n\nAfter\n"), "\nAfter\n");
  EXPECT_EQ(rst_to_text(".. note:: Mind\n   the gap.\n"), "Mind\n   the gap.\n");
  EXPECT_EQ(rst_to_text(".. code-block:: c\n   :linenos:\n\n   int x;\n"), "\n   int x;\n");
  EXPECT_EQ(rst_to_text("one ` two"), "one ` two\n");
}

TEST(PodText, RendersCommandsAndFormattingCodes) {
  EXPECT_EQ(pod_to_text("junk\n\n=head1 NAME\n\nB<bold I<both>> and C<< a->b >>, E<lt>tagE<gt>\n\n"
                        "  verbatim C<x>\n\n=over 4\n\n=item * one\n\n=item two\n\n=back\n\n"
                        "=begin html\n\n<p>\n\n=end html\n\nL<text|page>, L</\"sec\">X<index>\n\n"
                        "=cut\n\ncode();\n"),
            "NAME\n\nbold both and a->b, <tag>\n\n  verbatim C<x>\n\n* one\n\n- two\n\n"
            "text, sec\n\n");
  EXPECT_EQ(pod_to_text("=pod\n\nA < B and C<unclosed\n"), "A < B and C<unclosed\n\n");
}

TEST(ArchiveText, Wordnet) {
  const std::string line =
      "00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a tangible thing  \n";
  EXPECT_EQ(wordnet_glosses("  1 licence\n" + line),
            std::vector<std::string>{"object, physical object (noun): a tangible thing\n"});
  std::string many;
  for (int i = 0; i < 120; ++i) many += line;
  EXPECT_EQ(wordnet_glosses(many).size(), 3u);
}

TEST(ArchiveText, Dictionary) {
  EXPECT_EQ(dictionary_articles("word\n\n   A definition.\n\n   More.\n\nother\n\n   Text.\n"),
            (std::vector<std::string>{"word\n\n   A definition.\n\n   More.\n\n",
                                      "other\n\n   Text.\n"}));
}

TEST(ArchiveText, InflatesMembersAndRefusesDamage) {
  EXPECT_EQ(inflate_all(gzip("one ") + gzip("two"), "f"), "one two");
  const std::string whole = gzip("some text that is long enough to be cut");
  try {
    inflate_all(whole.substr(0, whole.size() - 10), "cut.gz");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cut.gz: damaged or cut gzip data");
  }
  EXPECT_THROW(inflate_all("not gzip at all", "f"), Error);
}

TEST(ArchiveText, RCharacterVectors) {
  std::string object = "X\n" + big_endian(2) + big_endian(0x40202) + big_endian(0x20300);
  std::string vector = object + big_endian(16) + big_endian(3);
  for (const std::string& line : {std::string("It is a truth"), std::string("acknowledged")}) {
    vector += big_endian(0x40009) + big_endian(line.size()) + line;
  }
  vector += big_endian(0x9) + big_endian(0xFFFFFFFF);
  const std::string number = object + big_endian(13) + big_endian(1) + big_endian(42);
  std::string rdb;
  for (const std::string& item : {number, vector}) {
    rdb += big_endian(item.size()) + deflate(item, 15);
  }
  EXPECT_EQ(r_character_vectors(rdb, "f"),
            std::vector<std::string>{"It is a truth\nacknowledged\n\n"});
}

TEST(CorpusText, Normalises) {
  EXPECT_EQ(normalise_text("\xEF\xBB\xBF\n\na  \r\nb\t\n\n\n\n\nc\x01\x7F\n\n"), "a\nb\n\n\nc\n");
  EXPECT_EQ(normalise_text("na\xEFve \x93quoted\x94"), "naïve “quoted”\n");
  EXPECT_EQ(normalise_text("naïve\n"), "naïve\n");
  EXPECT_EQ(normalise_text(""), "");
}

TEST(CorpusText, KeepsProseDropsTheRest) {
  std::string prose;
  for (int i = 0; i < 10; ++i) prose += "A sentence of some letters, as prose has.\n";
  EXPECT_TRUE(keep_document("text", prose));
  EXPECT_FALSE(keep_document("text", prose.substr(0, 150)));
  EXPECT_FALSE(keep_document("text", std::string(400, '7')));
  std::string foreign;
  for (int i = 0; i < 100; ++i) foreign += "слово abcdef ";
  EXPECT_FALSE(keep_document("text", foreign));
  const std::string generated = prose + std::string(1001, 'x');
  EXPECT_TRUE(keep_document("text", generated));
  EXPECT_FALSE(keep_document("code", generated));
}

TEST(CorpusText, ExtractsFromGzip) {
  std::string html = "<p>";
  for (int i = 0; i < 30; ++i) html += "Words of a page. ";
  const auto documents = extract_documents("html", gzip(html), "page.html.gz");
  ASSERT_EQ(documents.size(), 1u);
  EXPECT_TRUE(documents[0].starts_with("Words of a page. Words"));
  EXPECT_FALSE(is_corpus_kind("pdf"));
}

}  // namespace
}  // namespace fathom::text
