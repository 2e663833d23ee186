"""The built book in `_build/html`: run `companion build` first.

What reads the pages as text needs nothing else; what asks how they look and work starts one
headless Chromium, from disk and without a network.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
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
PHONE = 375  # pixels
PAGE_LIMIT = 1_500_000  # bytes of a page, beside what all pages share
FRAMES_LIMIT = 600_000  # of the frames behind its sliders


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
        browser.resize(PHONE)
        browser.open(url(name))
        for width in (PHONE, 1280):
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


def test_no_page_complains_in_the_console(site, browser):
    said = {}
    for name in shown_pages(site):
        browser.messages.clear()
        browser.open(url(name))
        browser.evaluate("0")  # what was said while scripts ran comes before this answer
        complaints = ("error", "warning", "exception", "assert")
        if found := [text for text in browser.messages if text.startswith(complaints)]:
            said[name] = found
    assert said == {}


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", PHONE)])
def test_axe_finds_nothing_serious(site, browser, theme, width, monkeypatch):
    monkeypatch.setattr(browser, "patience", 120)  # a page of many names takes long
    axe = pytest.importorskip("axe_core_python", reason="comes with the test dependencies")
    script = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    browser.resize(width)
    wrong = {}
    for name in shown_pages(site):
        browser.open(url(name), theme)
        browser.evaluate(script)
        browser.evaluate(
            "axe.run(document, {resultTypes: ['violations'],"
            " rules: {'label-content-name-mismatch': {enabled: true}}}).then(r => {"
            " window.found = JSON.stringify(r.violations.filter(v =>"
            " ['serious', 'critical'].includes(v.impact)).map(v => [v.id, v.nodes.length,"
            " v.nodes[0].target.join(' ')])) }); 0"
        )
        if found := json.loads(browser.wait_for("window.found")):
            wrong[name] = found
    assert wrong == {}


# ---------------------------------------------------------------- chapters


def chapter_pages(site: dict) -> list[str]:
    return [name for name in site if name.startswith("notebooks/")]


def test_a_page_is_not_heavier_than_it_may_be(site):
    sizes = {}
    for name, page in site.items():
        shown = {tag["src"] for tag in page.find_all("img") if "_images/" in tag["src"]}
        own = [HTML / "_images" / unquote(src.rpartition("/")[2]) for src in shown]
        sizes[name] = (HTML / name).stat().st_size + sum(file.stat().st_size for file in own)
    heavy = {name: size for name, size in sizes.items() if size > PAGE_LIMIT}
    assert {name: size for name, size in heavy.items() if not name.startswith("_modules/")} == {}


def test_frames_of_a_page_stay_small_together(site):
    for name, page in site.items():
        frames = [tag["src"] for box in page.select(".frames") for tag in box.find_all("img")]
        assert sum(map(len, frames)) <= FRAMES_LIMIT, name


def test_images_below_the_first_are_loaded_when_they_come_into_view(site):
    for name in chapter_pages(site):
        images = [
            tag for tag in site[name].select("article img") if not tag.find_parent(class_="frames")
        ]
        eager = [tag for tag in images if tag.get("loading") != "lazy"]
        assert len(eager) <= 1, name


def test_mathjax_is_loaded_where_there_is_mathematics_only(site):
    wrong = []
    for name, page in site.items():
        loads = any("mathjax" in (tag.get("src") or "") for tag in page.find_all("script"))
        if loads != bool(page.select("span.math, div.math")):
            wrong.append(name)
    assert wrong == []


def test_icons_that_no_page_shows_are_left_out_and_the_others_are_drawn(browser):
    assert (HTML / "_static/scripts/fontawesome.js").stat().st_size < 150_000
    browser.resize(1280)
    browser.open(url("index.html"))
    missing = "[...document.querySelectorAll('i[class*=fa-]')].map(e => e.className)"
    browser.wait_for("!!document.querySelector('svg.svg-inline--fa')")
    assert browser.evaluate(missing) == []  # each became a drawing
    assert (
        browser.evaluate("document.querySelectorAll('svg[data-icon] path:not([d])').length") == 0
    )


def test_no_cell_that_only_shows_source_is_shown(site):
    for name in chapter_pages(site):
        cells = [tag.text for tag in site[name].select("div.cell_input")]
        assert [text for text in cells if text.strip().startswith("show_source(")] == [], name


def test_figures_and_equations_are_numbered_by_chapter(site):
    for number, page in enumerate(chapters_in_order(site), 1):
        figures = [tag.text.strip() for tag in page.select("figcaption .caption-number")]
        assert figures == [f"Fig. {number}.{n}" for n in range(1, len(figures) + 1)]
        equations = [tag.text for tag in page.select("span.eqno")]
        assert [text[1:].split(".")[0] for text in equations] == [str(number)] * len(equations)


def chapters_in_order(site: dict) -> list:
    import yaml

    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in contents["parts"] for entry in part["chapters"]]
    return [site[f"{file}.html"] for file in listed if file.startswith("notebooks/")]


def test_a_chapter_has_its_result_and_its_set_up_folded(site):
    for name in chapter_pages(site):
        (box,) = site[name].select(".result-box")
        assert "claims of the paper reproduced" in box.text
        (fold,) = site[name].select("details.run-it")
        assert not fold.has_attr("open")
        assert fold.select("table.parameters")
        assert not fold.find("h2")
        set_up = [
            tag.text for tag in site[name].select("div.cell_input") if "use_style()" in tag.text
        ]
        assert [tag for tag in set_up if tag not in fold.text] == []


def test_the_first_screen_of_snip_has_its_figure_and_the_slider(browser):
    browser.resize(1280, 900)
    browser.open(url("notebooks/snip.html"))
    bottom = "Math.max(...[...document.querySelectorAll('.frames img')].map(e => e.getBoundingClientRect().bottom))"
    assert 0 < browser.evaluate(bottom) < 900
    assert (
        browser.evaluate("document.querySelector('.frames input').getBoundingClientRect().bottom")
        < 900
    )


def frame(browser) -> tuple:
    return tuple(
        browser.evaluate(
            "(() => { const f = document.querySelector('.frames'), s = f.querySelector('input');"
            " const seen = [...f.querySelectorAll('img')].filter(e => e.offsetWidth);"
            " return [seen.length, seen[0].dataset.label, s.value, s.getAttribute('aria-valuetext'),"
            " f.querySelector('span').textContent] })()"
        )
    )


def test_the_slider_moves_by_keyboard(browser):
    browser.resize(1280)
    browser.open(url("notebooks/snip.html"))
    labels = browser.evaluate(
        "[...document.querySelectorAll('.frames img')].map(e => e.dataset.label)"
    )
    start = int(browser.evaluate("document.querySelector('.frames input').value"))
    browser.evaluate("document.querySelector('.frames input').focus()")
    keys = [
        ("ArrowRight", 39, start + 1),
        ("ArrowLeft", 37, start),
        ("End", 35, len(labels) - 1),
        ("Home", 36, 0),
    ]
    for key, code, place in keys:
        browser.press(key, code)
        assert frame(browser) == (1, labels[place], str(place), labels[place], labels[place]), key


def test_the_slider_works_where_a_front_end_puts_the_output_into_its_page(browser):
    """Notebook front ends set an output's HTML by script: its own scripts would not run."""
    from matplotlib.figure import Figure

    from companion.slider import frames

    shown = frames(
        [Figure(figsize=(1, 1)), Figure(figsize=(2, 1))], ["a", "b"], alt="{label}", name="n"
    )
    browser.call("Page.navigate", url="about:blank")
    browser.wait_for("location.href == 'about:blank' && !!document.body")
    browser.evaluate(f"document.body.innerHTML = {json.dumps(shown._repr_html_())}; 0")
    assert frame(browser) == (1, "a", "0", "a", "a")
    browser.evaluate("document.querySelector('input').focus()")
    browser.press("ArrowRight", 39)
    assert frame(browser) == (1, "b", "1", "b", "b")


def test_without_scripts_the_slider_shows_one_frame_and_no_control(browser):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Page.navigate", url=url("notebooks/snip.html"))
        time.sleep(1)
        seen = "[...document.querySelectorAll('.frames img, .frames input')].filter(e => e.offsetWidth).map(e => e.tagName)"
        assert browser.evaluate(seen) == ["IMG"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


# ---------------------------------------------------------------- search


@pytest.mark.parametrize(
    ("query", "paper"),
    [
        ("SNIP", "snip"),
        ("pruning", "snip"),
        ("knowledge distillation", "masked_kd"),
        ("pedestrian detection", "visual_compiler"),
        ("attention map", "learn_to_pay_attention"),
        ("trajectory prediction", "desire"),
        ("SINDy", "spreme"),
        ("lottery ticket", "sparse_inr"),
    ],
)
def test_search_finds_the_right_chapter_first(browser, query, paper):
    browser.open(url("search.html") + "?q=" + query.replace(" ", "+"))
    browser.wait_for("/finished/.test(document.querySelector('#search-results').textContent)")
    first = browser.evaluate("document.querySelector('#search-results li a').getAttribute('href')")
    assert first.partition("#")[0].partition("?")[0] == f"notebooks/{paper}.html"


def test_search_from_disk_says_how_to_get_extracts(browser):
    browser.open(url("search.html") + "?q=pruning")
    browser.wait_for("/finished/.test(document.querySelector('#search-results').textContent)")
    assert "http.server" in browser.evaluate("document.querySelector('.search-note').textContent")


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
