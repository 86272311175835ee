"""The page in a real browser: no request, no harm, every row reached by keys, text that can be read in both schemes."""

import asyncio
from pathlib import Path

import pytest

from tests.inspection.browser import Browser, find_chromium, open_browser
from tests.inspection.small_pages import HARM, render_small_page

CHROMIUM = find_chromium()

# The lowest contrast of text that is drawn on its own background: WCAG 2.2, 1.4.3 wants 4.5.
CONTRAST = """(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const found = getComputedStyle(node).backgroundColor;
    return /, 0\\)$/.test(found) ? ground(node.parentElement) : found;
  };
  const texts = "h1, dt, dd, a, th, td, caption, figcaption, summary, .severity, .lengths, .verdict, .t, kbd, button";
  return Math.min(...[...document.querySelectorAll(texts)].map((node) => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
})()"""
# The tag that has the focus, and the row it stands in.
WHERE = """(() => {
  const here = document.activeElement;
  const row = here.closest("details.row");
  return here.tagName + (row ? " " + row.querySelector("h3").textContent : "");
})()"""


async def _look(browser: Browser, page: Path) -> dict[str, object]:
    await browser.open(page)
    seen: dict[str, object] = {"title": await browser.ask("document.title")}
    seen["tabs"] = []
    for _ in range(14):
        await browser.press("Tab")
        seen["tabs"].append(await browser.ask(WHERE))
    seen["outline"] = await browser.ask("getComputedStyle(document.activeElement).outlineStyle")
    await browser.ask("document.activeElement.blur()")
    seen["rows"] = []
    for key in ("j", "j", "j", "j", "k"):
        await browser.press(key)
        seen["rows"].append(await browser.ask(WHERE))
    seen["open_before"] = await browser.ask("document.activeElement.parentElement.open")
    await browser.press("Enter")
    seen["open_after"] = await browser.ask("document.activeElement.parentElement.open")
    await browser.press("Enter")
    await browser.ask("document.querySelectorAll('.tokens')[1].focus()")
    seen["told"] = []
    for key in ("ArrowRight", "ArrowRight", "End"):
        await browser.press(key)
        seen["told"].append(await browser.ask("document.getElementById('told').textContent"))
    for scheme in ("light", "dark"):
        await browser.prefer(scheme)
        seen[scheme] = await browser.ask("getComputedStyle(document.body).backgroundColor")
        seen[f"{scheme} contrast"] = await browser.ask(CONTRAST)
    seen["requests"], seen["complaints"] = browser.requests, browser.complaints
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, object]:
    """What one visit to the page found."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    place = tmp_path_factory.mktemp("browser")
    page = place / "page.html"
    page.write_text(render_small_page(), encoding="utf-8")

    async def visit() -> dict[str, object]:
        async with open_browser(CHROMIUM, place / "profile") as browser:
            return await _look(browser, page)

    return asyncio.run(visit())


def test_nothing_is_requested_but_the_page(seen):
    assert [address.rpartition("/")[2] for address in seen["requests"]] == ["page.html"]


def test_markup_in_the_rows_does_nothing(seen):
    assert seen["title"].startswith(HARM)
    assert seen["complaints"] == []


def test_tab_goes_from_the_skip_link_through_sections_and_rows_in_order(seen):
    assert (
        seen["tabs"]
        == [
            *("A", "A", "A", "A"),  # skip, then the three sections
            *("SUMMARY", "BUTTON"),  # the finding, then open all
            *("SUMMARY Row 1", "DIV Row 1"),
            *("SUMMARY Row 2", "DIV Row 2", "DIV Row 2"),
            "SUMMARY Row 3",
            *seen["tabs"][12:],
        ]
    )
    assert seen["outline"] == "solid"


def test_j_and_k_go_from_row_to_row_and_stop_at_the_last(seen):
    assert seen["rows"] == [f"SUMMARY Row {number}" for number in (1, 2, 3, 3, 2)]


def test_enter_closes_an_open_row(seen):
    assert (seen["open_before"], seen["open_after"]) == (True, False)


def test_arrows_go_from_token_to_token_and_tell_its_id(seen):
    first, second, last = seen["told"]
    assert first.endswith(' · "S" · not trained · 1 of 18')
    assert second.endswith(' · "a" · not trained · 2 of 18')
    assert last == 'id 0 · "<|end|>" · trained · control token · 18 of 18'


def test_light_and_dark_differ_and_both_can_be_read(seen):
    assert seen["light"] != seen["dark"]
    assert seen["light contrast"] >= 4.5
    assert seen["dark contrast"] >= 4.5
