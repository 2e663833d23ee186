"""The built book in `_build/html`: run `companion build` first.

What reads the pages as text needs nothing else; what asks how they look and work starts one
headless Chromium, from disk and without a network.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from companion.book.building import ROOT, content_hash

bs4 = pytest.importorskip("bs4", reason="comes with the book's dependencies")

HTML = ROOT / "_build" / "html"
PREFIX = "/paper-companion/"  # of links on 404.html, which is served at any address
LOADING = {  # elements that load something, and where they name it
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
    "audio": "src", "embed": "src", "object": "data",
}  # fmt: skip
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest"}
THEMES = ("light", "dark")


# ---------------------------------------------------------------- what is wrong with a page


def is_remote(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


def remote_loads(page) -> list[str]:
    """Addresses on the network that a page loads by itself."""
    named = [tag.get(LOADING[tag.name]) or "" for tag in page.find_all(list(LOADING))]
    named += [
        tag.get("href", "") for tag in page.find_all("link") if LOADED_LINKS & set(tag["rel"])
    ]
    named += [part for tag in page.find_all("style") for part in css_loads(tag.text)]
    return [address for address in named if is_remote(address)]


def css_loads(text: str) -> list[str]:
    """Addresses that a stylesheet loads: fonts, pictures, other stylesheets."""
    found = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
    return [first or second for first, second in found]


def images_without_text(page) -> list[str]:
    return [tag.get("src", "") for tag in page.find_all("img") if not tag.get("alt", "").strip()]


def anchors(page) -> set[str]:
    return {tag["id"] for tag in page.find_all(id=True)} | {
        tag["name"] for tag in page.find_all("a", attrs={"name": True})
    }


def broken_links(name: str, pages: dict, files: set[str]) -> list[str]:
    """Links of a page to a file or an anchor that the site does not have.

    pages: parsed pages by name. files: names of all files.
    """
    broken = []
    known: dict[str, set[str]] = {}
    for tag in pages[name].find_all("a", href=True):
        parts = urlsplit(tag["href"])
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        if path.startswith(PREFIX):
            target = path.removeprefix(PREFIX) or "index.html"
        else:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = target if path else name
        if target in pages and target not in known:
            known[target] = anchors(pages[target])
        lost = parts.fragment and unquote(parts.fragment) not in known.get(target, ())
        if target not in files or lost:
            broken.append(tag["href"])
    return broken


# ---------------------------------------------------------------- the site as files


@pytest.fixture(scope="module")
def site() -> dict:
    """Pages by name; skipped unless the book was built from the files as they are."""
    stamp = HTML.parent / "built-from"
    if not (HTML / "index.html").is_file() or not stamp.is_file():
        pytest.skip("there is no built book in _build/html: run `companion build`")
    if stamp.read_text() != content_hash():
        pytest.skip("the book in _build/html is older than its sources: run `companion build`")
    return {
        path.relative_to(HTML).as_posix(): bs4.BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in sorted(HTML.rglob("*.html"))
        if "_static" not in path.relative_to(HTML).parts
    }


@pytest.fixture(scope="module")
def files(site) -> set[str]:
    return {path.relative_to(HTML).as_posix() for path in HTML.rglob("*") if path.is_file()}


def test_no_page_loads_anything_over_the_network(site):
    assert {name: bad for name, page in site.items() if (bad := remote_loads(page))} == {}


def test_no_stylesheet_loads_anything_over_the_network():
    if not HTML.is_dir():
        pytest.skip("there is no built book in _build/html: run `companion build`")
    sheets = {path: css_loads(path.read_text(errors="replace")) for path in HTML.rglob("*.css")}
    assert {
        p.name: bad for p, found in sheets.items() if (bad := list(filter(is_remote, found)))
    } == {}


def test_internal_links_and_anchors_resolve(site, files):
    assert {name: bad for name in site if (bad := broken_links(name, site, files))} == {}


def test_every_image_has_alternative_text(site):
    assert {name: bad for name, page in site.items() if (bad := images_without_text(page))} == {}


def test_no_page_names_a_path_of_the_building_machine(site):
    named = (str(ROOT), str(Path.home()) + "/")
    assert [name for name, page in site.items() if any(path in str(page) for path in named)] == []


def test_all_papers_are_on_the_start_page_and_the_scoreboard(site):
    from companion.book.runs import papers

    for page in ("index.html", "book/scoreboard.html"):
        text = site[page].find("table").get_text(" ")
        assert [paper["stem"] for paper in papers() if paper["title"] not in text] == []


def test_checks_of_a_page_find_planted_faults():
    page = bs4.BeautifulSoup(
        '<script src="https://cdn.example/x.js"></script><script src="a.js"></script>'
        '<link rel="stylesheet" href="//cdn.example/x.css"><link rel="canonical" href="https://x">'
        '<style>@import "http://a/b.css"; p { background: url(http://a/b.png) }</style>'
        '<img src="b.png"><img src="c.png" alt="a curve">'
        '<a href="#here">1</a><a href="#gone">2</a><a href="no.html">3</a><a href="https://x">4</a>'
        '<a href="../book/p.html#here">5</a><p id="here"></p>',
        "html.parser",
    )
    assert set(remote_loads(page)) == {
        "https://cdn.example/x.js",
        "//cdn.example/x.css",
        "http://a/b.png",
        "http://a/b.css",
    }
    assert images_without_text(page) == ["b.png"]
    assert broken_links("book/p.html", {"book/p.html": page}, {"book/p.html"}) == [
        "#gone",
        "no.html",
    ]


# ---------------------------------------------------------------- the site in a browser


@pytest.fixture(scope="module")
def browser(site):
    from browser import Browser, find_chromium

    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: pages are not looked at")
    browser = Browser(executable)
    yield browser
    browser.close()


def shown_pages(site: dict) -> list[str]:
    """Pages that readers are led to, without the copies of the source code."""
    return [name for name in site if not name.startswith("_modules/") and name != "404.html"]


def url(name: str) -> str:
    return (HTML / name).as_uri()


def test_equations_are_set_without_a_network(site, browser):
    with_math = [name for name, page in site.items() if page.select(".math")]
    if not with_math:
        pytest.skip("no page has an equation yet")
    for name in with_math:
        browser.open(url(name))
        wanted = len(site[name].select("span.math, div.math"))
        browser.wait_for(f"document.querySelectorAll('mjx-container').length >= {wanted}")
        wrong = browser.evaluate(
            "[...document.querySelectorAll('[data-mjx-error], mjx-merror')].map(e => e.textContent)"
        )
        assert wrong == [], name


def test_search_finds_connection_sensitivity(browser):
    browser.open(url("search.html") + "?q=connection+sensitivity")
    browser.wait_for("/finished/.test(document.querySelector('#search-results').textContent)")
    found = browser.evaluate(
        "[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    )
    assert any(address.startswith("index.html") for address in found), found


def test_no_page_scrolls_sideways_or_fetches_anything_in_either_theme(site, browser):
    wrong = []
    for name in shown_pages(site):
        browser.resize(400)
        browser.open(url(name))
        for width in (400, 1280):
            browser.resize(width)
            for theme in THEMES:
                browser.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
                extent = browser.evaluate("document.documentElement.scrollWidth")
                if extent > width:
                    wrong.append(f"{name}: {extent} px of content in {width} px, {theme}")
        remote = browser.evaluate(
            "performance.getEntriesByType('resource').map(e => e.name).filter(n => /^http/.test(n))"
        )
        wrong += [f"{name} fetches {address}" for address in remote]
    assert wrong == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_reader_gets_the_theme_that_the_system_asks_for(browser, theme):
    browser.open(url("index.html"), theme)
    assert browser.wait_for("document.documentElement.dataset.theme") == theme
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) == (theme == "light")


@pytest.mark.parametrize("theme", THEMES)
def test_verdicts_are_legible(browser, theme):
    browser.open(url("book/reading.html"), theme)
    browser.wait_for(f"document.documentElement.dataset.theme == '{theme}'")
    pills = browser.evaluate(
        "[...document.querySelectorAll('.verdict')].map(e => {"
        " const s = getComputedStyle(e); return [e.textContent, s.color, s.backgroundColor] })"
    )
    assert {"✓ reproduced", "✗ not reproduced", "– not run here", "stale"} <= {
        text for text, *_ in pills
    }
    # 4.5 is what WCAG asks of text of ordinary size
    assert [text for text, ink, ground in pills if contrast(ink, ground) < 4.5] == []


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour ``rgb(r, g, b)``, after WCAG."""
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
