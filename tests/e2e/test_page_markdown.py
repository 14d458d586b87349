"""The page's Markdown: what it makes of a text; no text can act, and none is slow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.browser import opened
from tests.helpers.running import RunningServer

SIZE = 100_000
WHOLE = """async (text) => {
    const { markdown, element } = await import("/ui/markdown.js");
    return element("div", "", markdown(text)).innerHTML;
}"""
GROWN = """async (parts) => {
    const { GrowingMarkdown, element } = await import("/ui/markdown.js");
    const parent = element("div");
    const growing = new GrowingMarkdown(parent);
    for (const part of parts) growing.add(part);
    growing.end();
    return parent.innerHTML;
}"""
SHOWN = """async (text) => {
    const { markdown, element } = await import("/ui/markdown.js");
    const parent = element("div", "answer", markdown(text));
    document.body.append(parent);
    const height = parent.offsetHeight;
    const names = new Set([...parent.querySelectorAll("*")].map((one) => one.localName));
    const links = [...parent.querySelectorAll("a")].map((one) => [one.href, one.rel]);
    const names_of_attributes = new Set(
        [...parent.querySelectorAll("*")].flatMap((one) => one.getAttributeNames()));
    parent.remove();
    return { height, names: [...names], links, attributes: [...names_of_attributes] };
}"""


@pytest.fixture(scope="module")
def page(browser: Any, echo_server: RunningServer) -> Iterator[Any]:
    with opened(browser, echo_server.url) as page:
        page.goto("/")
        yield page


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# A *b*\n###### C\n#no", "<h3>A <em>b</em></h3><h6>C</h6><p>#no</p>"),
        ("**a** *b* __c__ _d_ ~~e~~", "<p><strong>a</strong> <em>b</em> <strong>c</strong> "
         "<em>d</em> <del>e</del></p>"),
        ("***a** b*", "<p><em><strong>a</strong> b</em></p>"),
        ("***a* b**", "<p><strong><em>a</em> b</strong></p>"),
        ("***a*** ****b**** ~c~ ~~d*~~*", "<p><em><strong>a</strong></em> ****b**** ~c~ "
         "<del>d*</del>*</p>"),
        ("2 * 3 * 4, snake_case_name, **open", "<p>2 * 3 * 4, snake_case_name, **open</p>"),
        (r"\*a\* \\ \d", r"<p>*a* \ \d</p>"),
        ("`a *b*` ``c`d`` `e", "<p><code>a *b*</code> <code>c`d</code> `e</p>"),
        ("- a\n- b\n  - c\n    1. d\n\ne", "<ul><li>a</li><li>b<ul><li>c<ol><li>d</li></ol></li>"
         "</ul></li></ul><p>e</p>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("1. a\n\n   b\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
        ("text\n- a\nlazy\n1984. was", "<p>text</p><ul><li>a\nlazy</li></ul><ol start=\"1984\">"
         "<li>was</li></ol>"),
        ("in\n1984. not a list", "<p>in\n1984. not a list</p>"),
        ("> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("[a *b*](https://x.org/y_(z) \"t\")", '<p><a href="https://x.org/y_(z)" '
         'rel="noopener noreferrer" target="_blank">a <em>b</em></a></p>'),
        ("see https://x.org/a. <mailto:a@b.c>", '<p>see <a href="https://x.org/a" '
         'rel="noopener noreferrer" target="_blank">https://x.org/a</a>. <a href="mailto:a@b.c" '
         'rel="noopener noreferrer" target="_blank">mailto:a@b.c</a></p>'),
        ("![a](https://x.org/i.png)", '<p><a href="https://x.org/i.png" '
         'rel="noopener noreferrer" target="_blank">a</a></p>'),
        ("[a](/b) [c](javascript:d) [e]()", "<p>[a](/b) [c](javascript:d) [e]()</p>"),
        ("a < b & c > d &amp; <b>e</b>", "<p>a &lt; b &amp; c &gt; d &amp;amp; "
         "&lt;b&gt;e&lt;/b&gt;</p>"),
        ("a | b\nno table", "<p>a | b\nno table</p>"),
    ],
)  # fmt: skip
def test_markdown_becomes_these_elements(page: Any, text: str, html: str) -> None:
    assert page.evaluate(WHOLE, text) == html


def test_a_fence_keeps_its_text_and_names_its_language(page: Any) -> None:
    html = page.evaluate(WHOLE, "````py title=x\n  a\n```\n\n<b>\n````\nend")
    assert "<code>  a\n```\n\n&lt;b&gt;</code>" in html
    assert "<span>py</span>" in html
    assert html.endswith("<p>end</p>")


def test_a_fence_without_its_end_is_code_to_the_end(page: Any) -> None:
    html = page.evaluate(WHOLE, "a\n~~~\n# b\n\n- c")
    assert "<code># b\n\n- c</code>" in html


def test_a_table_has_its_columns_and_no_more(page: Any) -> None:
    html = page.evaluate(WHOLE, "| a | b |\n|--|:-:|\n| `c` \\| d | e | f |\n| g\nh")
    assert '<th class="left" scope="col">a</th><th class="center" scope="col">b</th>' in html
    assert '<td class="left"><code>c</code> | d</td><td class="center">e</td></tr>' in html
    assert '<tr><td class="left">g</td></tr>' in html
    assert html.endswith("<p>h</p>")


@pytest.mark.parametrize("seed", range(8))
def test_a_text_that_grows_ends_as_the_whole_text(page: Any, seed: int) -> None:
    chance = random.Random(seed)
    pieces = [
        "word ", "\n", "\n\n", "- item", "\n  - ", "\n1. ", "\n2. x", "```", "\n```py\n", "\n~~~\n",
        "**", "*", "_", "`", "\n# ", "\n> ", "\n---\n", "|a|b|\n|-|-|\n|c|d|", "\n|", "-", " ", "5",
        "[l](https://x.org)", "https://x.org", "[", "](", "\\", "\r\n", "  ", "    ", "#", "🙂",
    ]  # fmt: skip
    for _ in range(40):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 60)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randint(0, 30)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert page.evaluate(GROWN, parts) == page.evaluate(WHOLE, text), parts


def test_blocks_that_are_whole_are_not_made_again(page: Any) -> None:
    kept = page.evaluate("""async () => {
        const { GrowingMarkdown, element } = await import("/ui/markdown.js");
        const parent = element("div");
        const growing = new GrowingMarkdown(parent);
        growing.add("first\\n\\n```\\ncode\\n");
        const [first, code] = [parent.querySelector("p"), parent.querySelector(".code")];
        growing.add("more\\n");
        growing.add("```\\n\\nlast");
        growing.add(" words");
        return parent.querySelector("p") === first && first.textContent === "first"
            && code.textContent.endsWith("code\\nmore\\n") && parent.lastChild.className === "tail";
    }""")
    assert kept


def fill(text: str) -> str:
    return (text * (SIZE // len(text) + 1))[:SIZE]


HOSTILE = {
    "scripts": fill("<script>document.title='owned'</script>"),
    "images": fill('<img src=x onerror="document.title=1">'),
    "javascript links": fill("[a](javascript:document.title=1) <javascript:x> "),
    "disguised links": fill("[a](JaVaScRiPt:)[b](&#106;avascript:x) [c](\\javascript:) [d](data:)"),
    "attributes": fill('[a](https://x.org/"onmouseover="x) [b](https://x.org "t" onclick=x) '),
    "fences without end": fill("```\n```x\n````\n"),
    "a fence": "```" + fill("x\n"),
    "a fence of spaces": "```" + fill(" ") + "`",
    "tildes": fill("~") + "`",
    "asterisks": fill("*"),
    "underscores": fill("_") + "a",
    "openers": fill("*a "),
    "openers of all kinds": fill("*a **b _c __d ~~e "),
    "pairs in pairs": fill("(*a ")[: SIZE // 2] + fill(" a*)")[: SIZE // 2],
    "brackets": fill("["),
    "images without end": fill("!["),
    "links without end": fill("[a]("),
    "links without end, with text": fill("[a](x[a](y"),
    "backticks": "a".join("`" * n for n in range(1, 447)),
    "single backticks": fill("`a"),
    "code and code": fill("`a` "),
    "quotes in quotes": fill(">"),
    "lists in a line": fill("- "),
    "lists in lists": "\n".join(" " * n + "- a" for n in range(440)),
    "items": fill("- a\n"),
    "items and blank lines": "- a\n" + fill("\n") + "b",
    "numbers": fill("1. a\n"),
    "rules": fill("- ") + "x",
    "headings": fill("# a\n"),
    "a heading of spaces": "# " + fill(" ") + "\u2028x",
    "columns": fill("|") + "\n" + fill("|-"),
    "rows": "|a|b|\n|-|-|\n" + fill("|\n"),
    "tables": fill("|a|\n|-|\n"),
    "addresses of dots": "http://" + fill("."),
    "addresses in addresses": fill("http://..."),
    "addresses without end": fill("<http:"),
    "backslashes": fill("\\"),
    "lines": fill("a\n"),
    "paragraphs": fill("a\n\n"),
    "one word": fill("x"),
    "spaces": fill(" ") + "x",
    # With far more marks on one letter, the browser itself is slow, on any page.
    "marks above marks": fill("a" + "\u0301" * 1000),
    "directions": fill("\u202e\u2066a"),
    "nothing": fill("\0\ufffd\ufeff"),
}  # fmt: skip
ELEMENTS = {
    "p", "h3", "h4", "h5", "h6", "em", "strong", "del", "code", "pre", "div", "span", "button",
    "ul", "ol", "li", "blockquote", "hr", "a", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ATTRIBUTES = {
    "class", "href", "rel", "target", "start", "scope", "type", "tabindex", "role", "aria-label",
    "data-act",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_harmless_and_shown_at_once(page: Any, name: str) -> None:
    """What takes the square of 100,000 steps does not end within the test's time."""
    shown = page.evaluate(SHOWN, HOSTILE[name])
    assert shown["height"] > 0
    assert set(shown["names"]) <= ELEMENTS
    assert set(shown["attributes"]) <= ATTRIBUTES
    assert all(address.startswith(("http:", "https:", "mailto:")) for address, _ in shown["links"])
    assert all(rel == "noopener noreferrer" for _, rel in shown["links"])
    assert page.title() == "tokenflume"
