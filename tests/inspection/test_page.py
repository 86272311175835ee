"""The page: one file, every text escaped, and read by its structure alone."""

import re
from html.parser import HTMLParser

import pytest

from finetune.inspection.page import build_chart
from tests.inspection.small_pages import FETCH, HARM, render_small_page
from tests.inspection.small_tokenizers import END

_NEVER_CLOSED = {"meta", "link"}


class Read(HTMLParser):
    """The page as a browser takes it: its tags, the text by the tag it stands in, and no tag left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text_in: dict[str, str] = {}
        self.pieces: list[tuple[str, bool]] = []  # of the rows: text, and whether it stands in a <mark>
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in _NEVER_CLOSED:
            self._open.append(tag)
        if tag == "span" and "t" in (dict(attributes).get("class") or "").split():
            self.pieces.append(("", "mark" in self._open))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        inside = self._open[-1] if self._open else ""
        self.text_in[inside] = self.text_in.get(inside, "") + text
        if inside == "span" and self.pieces:
            self.pieces[-1] = (self.pieces[-1][0] + text, self.pieces[-1][1])

    def count(self, tag: str) -> int:
        return [name for name, _ in self.tags].count(tag)


@pytest.fixture(scope="module")
def page() -> str:
    return render_small_page()


@pytest.fixture(scope="module")
def read(page) -> Read:
    return Read(page)


def test_no_text_of_the_rows_becomes_a_tag(read):
    assert read.count("script") == 1
    assert read.count("img") == 0
    assert read.count("link") == 1
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert HARM in read.text_in["h1"]


def test_nothing_is_fetched(read, page):
    addresses = [value for _, found in read.tags for name, value in found.items() if name in ("src", "href")]
    assert set(addresses) == {"#rows", "#census", "#findings", "data:,"}
    style = read.text_in["style"]
    assert not re.search(r"url\(|@import", style)
    policy = next(found["content"] for name, found in read.tags if "http-equiv" in found and name == "meta")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_trained_tokens_stand_in_marks_and_the_others_do_not(read):
    first = read.pieces[1 + 1 :]  # behind the two of the legend
    text = "".join(text for text, _ in first)
    assert text.startswith(HARM + FETCH + END)
    trained = [is_trained for _, is_trained in first]
    assert not any(trained[: len(HARM)])
    assert all(trained[len(HARM) : len(HARM) + len(FETCH) + 1])


def test_a_character_of_several_tokens_is_whole_and_tells_all_ids(page):
    assert re.search(r'title="id \d+ \+ \d+ \+ \d+ \+ \d+">😀</span>', page)


def test_control_tokens_are_chips_and_unseen_characters_are_named(page):
    assert f'<span class="t chip" title="id 0">{END.replace("<", "&lt;").replace(">", "&gt;")}</span>' in page
    assert "‹U+202E›" in page
    assert "\u202e" not in page
    assert "\u200b" not in page


def test_the_page_has_landmarks_headings_and_captions(read):
    assert {"header", "nav", "main", "footer"} <= {name for name, _ in read.tags}
    assert read.count("h1") == 1
    assert read.count("caption") == read.count("table") == 2
    assert ("html", {"lang": "en"}) in read.tags
    assert [name for name, _ in read.tags if re.fullmatch(r"h\d", name)][:3] == ["h1", "h2", "h2"]
    chart = next(found for name, found in read.tags if name == "svg")
    assert (chart["role"], chart["aria-labelledby"]) == ("img", "chart-title chart-text")


def test_rows_open_without_a_script_and_a_dropped_one_says_why(read, page):
    assert read.count("details") == 3 + 1  # and the finding's
    assert "dropped: it has 900 tokens and `data.max_length` is 512" in page


def test_colours_follow_the_system(read):
    assert "@media (prefers-color-scheme: dark)" in read.text_in["style"]


def test_bars_are_as_high_as_their_rows_and_empty_ones_at_the_beginning_are_left_out():
    chart = build_chart(
        [{"from": 0, "to": 9, "rows": 0}, {"from": 10, "to": 19, "rows": 4}, {"from": 20, "to": 99, "rows": 1}]
    )
    high, low = chart.bars
    assert high["height"] == 4 * low["height"]
    assert chart.text == "10 to 19 tokens: 4 rows; 20 to 99 tokens: 1 rows"
    assert build_chart([]) is None


def test_a_finding_tells_its_policy_and_its_figures(read):
    assert "duplicates: 2 (policy: report)" in read.text_in["summary"]
    assert f"favours {HARM} · share 0.75" in read.text_in["p"]


def test_nothing_found_is_told_from_nothing_looked_for():
    assert "<p>findings: none</p>" in render_small_page([])
    assert "<p>findings: not looked for (data.findings is null)</p>" in render_small_page(None)


def test_where_no_token_is_trained_as_such_the_sources_count_none():
    assert ">trained</th>" in render_small_page()
    assert ">trained</th>" not in render_small_page(objective="reward")
