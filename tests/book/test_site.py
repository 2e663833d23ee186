"""The built book in `_build/html`: run `companion build` first.

What reads the pages as text needs nothing else; what asks how they look and work starts one
headless Chromium, from disk and without a network.
"""

from __future__ import annotations

import json
import posixpath
import re
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from companion.book import assets
from companion.book.building import ROOT, BuildError, content_hash
from companion.book.printed import find_browser, print_book, print_page
from companion.runs.chapters import stems

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


def broken_links(name: str, page, known: dict[str, set[str]], files: set[str]) -> list[str]:
    """Links of a page to a file or an anchor that the site does not have.

    known: the anchors of every page, by its name. files: names of all files.
    """
    broken = []
    for tag in page.find_all("a", href=True):
        parts = urlsplit(tag["href"])
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        if path.startswith(PREFIX):
            target = path.removeprefix(PREFIX) or "index.html"
        else:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            target = target if path else name
        lost = parts.fragment and unquote(parts.fragment) not in known.get(target, ())
        if target not in files or lost:
            broken.append(tag["href"])
    return broken


# ---------------------------------------------------------------- the site as files


@cache
def read(name: str):
    return bs4.BeautifulSoup((HTML / name).read_text(encoding="utf-8"), "html.parser")


class Site(Mapping):
    """Pages by name, each read when it is first asked for: all of them take ten seconds."""

    def __init__(self) -> None:
        found = (path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html"))
        self.names = sorted(name for name in found if "_static/" not in name)

    def __getitem__(self, name: str):
        return read(name)

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@pytest.fixture(scope="module")
def site() -> Site:
    """The built book; skipped unless it was built from the files as they are."""
    stamp = HTML.parent / "built-from"
    if not (HTML / "index.html").is_file() or not stamp.is_file():
        pytest.skip("there is no built book in _build/html: run `companion build`")
    if stamp.read_text() != content_hash():
        pytest.skip("the book in _build/html is older than its sources: run `companion build`")
    return Site()


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
    known = {name: anchors(page) for name, page in site.items()}
    found = {name: broken_links(name, page, known, files) for name, page in site.items()}
    assert {name: bad for name, bad in found.items() if bad} == {}


def test_every_image_has_alternative_text(site):
    assert {name: bad for name, page in site.items() if (bad := images_without_text(page))} == {}


def test_no_page_names_a_path_of_the_building_machine(site):
    named = (str(ROOT), str(Path.home()) + "/")
    texts = {name: (HTML / name).read_text(encoding="utf-8") for name in site}
    assert [name for name, text in texts.items() if any(path in text for path in named)] == []


def test_all_papers_are_on_the_start_page_and_the_scoreboard(site):
    from companion.book.runs import papers

    for page, up in (("index.html", ""), ("book/scoreboard.html", "../")):
        led_to = {tag["href"] for tag in site[page].select("article a[href]")}
        wanted = {f"{up}notebooks/{paper['stem']}.html" for paper in papers()}
        assert wanted <= led_to, page
    start = site["index.html"]
    assert len(start.select(".papers .sd-card img[alt]")) == len(papers())
    pages = {tag["href"] for tag in start.select(".papers a")}
    assert {f"https://arxiv.org/abs/{paper['arxiv']}" for paper in papers()} <= pages


def published() -> dict:
    """claims.json, which other tools read."""
    return json.loads((HTML / "claims.json").read_text(encoding="utf-8"))


def outcomes_of(chapter: dict, id: str) -> list[str]:
    """How a claim came out, run by run, from claims.json alone."""
    found = [
        claim["outcome"]
        for run in chapter["runs"]
        if run["status"] == "complete"
        for claim in run.get("claims", [])
        if claim["id"] == id
    ]
    for sweep in chapter["sweeps"]:
        if held := sweep["claims"].get(id):
            found += ["reproduced"] * held["held"]
            found += ["not reproduced"] * (held["of"] - held["held"])
    return found


def standing_of(chapter: dict, id: str) -> str:
    kinds = set(outcomes_of(chapter, id)) - {"not run here"}
    if len(kinds) == 2:
        return "some"
    return {"reproduced": "holds", "not reproduced": "fails"}.get("".join(kinds), "open")


def test_the_numbers_of_the_scoreboard_are_those_of_claims_json(site):
    page = site["book/scoreboard.html"]
    wanted = {
        (stem, id): (standing_of(chapter, id), claim["kind"])
        for stem, chapter in published().items()
        for id, claim in chapter["claims"].items()
    }
    rows = {
        (row["data-chapter"], row.select_one("summary b").get_text()): row
        for row in page.select("table.matrix > tbody > tr")
    }
    assert {key: (row["data-outcome"], row["data-kind"]) for key, row in rows.items()} == wanted

    def count(paper, kind, stem=None):
        return sum(
            (standing, claim_kind == "paper") == (kind, paper) and stem in (None, of)
            for (of, _), (standing, claim_kind) in wanted.items()
        )

    bars = page.select("table.bars tbody tr")
    assert len(bars) == len(published())
    for bar in bars:
        stem = bar.th.a["href"].removeprefix("#scoreboard-").replace("-", "_")
        for cell, paper in zip(bar.find_all("td"), (True, False), strict=True):
            shown = {a["class"][0]: int(a.find(string=True)) for a in cell.select("a")}
            assert shown == {
                kind: n
                for kind in ("fails", "some", "holds", "open")
                if (n := count(paper, kind, stem))
            }, stem
    for where in (page, site["index.html"]):
        for link in where.select("a.count"):
            kind = link["class"][1]
            assert int(link.get_text().split()[0]) == count(True, kind)

    for stem, chapter in published().items():
        for id in chapter["claims"]:
            signs = [cell["class"] for cell in rows[stem, id].select("td > .outcome")]
            assert len(signs) == len(chapter["runs"]) + len(chapter["sweeps"])
            # the first column is the default run
            found = [c for c in chapter["runs"][0]["claims"] if c["id"] == id]
            asserted = found[0].get("asserted") if found else False
            assert ("asserted" in signs[0]) is bool(asserted), (stem, id)


def test_every_claim_has_an_address(site):
    known = {tag["id"] for tag in site["book/scoreboard.html"].select("[id]")}
    claims = {f"{stem}-{id}" for stem, chapter in published().items() for id in chapter["claims"]}
    assert claims <= known
    assert "snip-C9" in claims


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
    assert broken_links("book/p.html", page, {"book/p.html": anchors(page)}, {"book/p.html"}) == [
        "#gone",
        "no.html",
    ]


# ---------------------------------------------------------------- the site in a browser


@pytest.fixture(scope="module")
def chromium() -> str:
    if found := find_browser():
        return found
    pytest.skip("no Chromium on this machine: pages are not looked at")


@pytest.fixture(scope="module")
def browser(site, chromium):
    from browser import Browser

    browser = Browser(chromium)
    yield browser
    browser.close()


def shown_pages(site: Mapping) -> list[str]:
    """Pages that readers are led to, without the copies of the source code."""
    return [name for name in site if not name.startswith("_modules/") and name != "404.html"]


SHOWN = "e => e.getClientRects().length > 0"
SEEN = "e => e.checkVisibility({contentVisibilityAuto: true})"


def url(name: str) -> str:
    return (HTML / name).as_uri()


def test_a_chapter_prints_with_its_equations_its_answers_open_and_its_code_folds_away(
    chromium, browser, tmp_path
):
    """As `make pdf` prints the whole book, which takes a build of its own."""
    pdf = print_page(chromium, HTML / "notebooks" / "snip.html", tmp_path / "snip.pdf")
    written = pdf.read_bytes()
    assert written.startswith(b"%PDF-")
    assert b"/Outlines" in written
    assert 10 <= len(re.findall(rb"/Type\s*/Page\b", written)) <= 60
    assert [file.name for file in tmp_path.iterdir()] == ["snip.pdf"]

    browser.resize(1280)
    browser.open(url("notebooks/snip.html"))
    browser.call("Emulation.setEmulatedMedia", media="print")
    # what the medium opens is seen from the next frame on, so it is waited for
    browser.wait_for(f"[...document.querySelectorAll('details.fold > p')].every({SEEN})")
    browser.wait_for(f"![...document.querySelectorAll('details.hide pre')].some({SEEN})")
    browser.call("Emulation.setEmulatedMedia", media="")


def test_printing_without_a_browser_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="a PDF needs one of chromium"):
        print_book(tmp_path)
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho no display >&2; exit 1\n")
    broken.chmod(0o755)
    with pytest.raises(BuildError, match="did not print the book:\nno display"):
        print_page(str(broken), tmp_path / "page.html", tmp_path / "book.pdf")
    part = tmp_path / "book.part.pdf"
    part.write_text("of a print that was broken off")
    broken.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(BuildError, match="did not print the book"):
        print_page(str(broken), tmp_path / "page.html", tmp_path / "book.pdf")
    assert not part.exists()
    assert not (tmp_path / "book.pdf").exists()


def test_search_finds_connection_sensitivity(browser):
    browser.open(url("search.html") + "?q=connection+sensitivity")
    browser.wait_for("/finished/.test(document.querySelector('#search-results').textContent)")
    found = browser.evaluate(
        "[...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    )
    assert any(address.startswith("index.html") for address in found), found


def test_every_page_sets_its_equations_fits_fetches_nothing_and_does_not_complain(site, browser):
    wrong = []
    equations = "document.querySelectorAll('span.math, div.math').length"
    for name in shown_pages(site):
        browser.messages.clear()
        browser.resize(PHONE)
        browser.open(url(name))
        if browser.evaluate(f"{equations} > 0"):
            browser.wait_for(f"document.querySelectorAll('mjx-container').length >= {equations}")
            errors = "[...document.querySelectorAll('[data-mjx-error], mjx-merror')]"
            found = browser.evaluate(f"{errors}.map(e => e.textContent)")
            wrong += [f"{name} cannot set {text}" for text in found]
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
        complaints = ("error", "warning", "exception", "assert")
        wrong += [f"{name}: {text}" for text in browser.messages if text.startswith(complaints)]
    assert wrong == []


def test_wide_figures_are_shrunk_on_no_phone_below_a_readable_size(site, browser):
    boxes = "[...document.querySelectorAll('.figure-box')]"
    for name in filter(re.compile("notebooks/").match, shown_pages(site)):
        browser.resize(PHONE)
        browser.open(url(name))
        assert browser.evaluate(f"{boxes}.length") > 0, name
        least = browser.evaluate(f"Math.min(...{boxes}.map(b => b.scrollWidth))")
        assert least >= assets.WIDE, name
        browser.resize(1280)
        assert browser.evaluate(f"{boxes}.every(b => b.scrollWidth <= b.clientWidth)"), name


ROWS = f"[...document.querySelectorAll('table.matrix > tbody > tr')].filter({SHOWN})"


def test_an_address_of_a_claim_opens_it_and_filters_show_what_fits(browser):
    browser.resize(1280)
    browser.open(url("book/scoreboard.html") + "#snip-C9")
    assert browser.wait_for("document.getElementById('snip-C9').closest('details').open")
    top = browser.wait_for("document.getElementById('snip-C9').getBoundingClientRect().top")
    assert 0 < top < 900
    browser.open(url("book/scoreboard.html") + "?kind=paper&outcome=fails#claims")
    failed = [
        f"{stem} {id}"
        for stem, chapter in published().items()
        for id, claim in chapter["claims"].items()
        if (standing_of(chapter, id), claim["kind"]) == ("fails", "paper")
    ]
    names = f"{ROWS}.map(r => r.dataset.chapter + ' ' + r.querySelector('b').textContent)"
    assert sorted(browser.evaluate(names)) == sorted(failed)
    count = browser.evaluate("document.querySelector('form.filters output').value")
    assert count.startswith(f"{len(failed)} of ")
    choose = "const f = document.querySelector('form.filters'); f.elements.{}.value = '{}'; f.dispatchEvent(new Event('change'))"
    for name, value in (("kind", ""), ("outcome", ""), ("chapter", "snip")):
        browser.evaluate(f"{{{choose.format(name, value)}}}")
    assert len(browser.evaluate(names)) == len(published()["snip"]["claims"])


def test_a_cell_opens_its_claim_and_the_keyboard_does_too(browser):
    browser.resize(1280)
    browser.open(url("book/scoreboard.html"))
    opened = "document.querySelector('#snip-C1').closest('details').open"
    assert not browser.evaluate(opened)
    browser.evaluate("document.querySelector('table.matrix > tbody > tr > td').click()")
    assert browser.evaluate(opened)
    browser.evaluate("document.querySelector('table.matrix summary').focus()")
    for kind in ("keyDown", "keyUp"):
        text = {"text": "\r"} if kind != "keyUp" else {}
        browser.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter",
            windowsVirtualKeyCode=13, **text,
        )  # fmt: skip
    assert not browser.evaluate(opened)


def test_the_scoreboard_is_readable_without_scripts(site):
    """Its script only hides: as the page is written, all is there but the filters."""
    page = site["book/scoreboard.html"]
    assert [tag.name for tag in page.select("article [hidden]")] == ["form"]
    assert [tag for tag in page.select("article [style*=display]")] == []
    assert len(page.select("table.matrix details > summary")) == sum(
        len(chapter["claims"]) for chapter in published().values()
    )


def test_the_matrix_fits_a_desk_and_scrolls_in_its_own_box_on_a_phone(browser):
    browser.open(url("book/scoreboard.html"))
    boxes = "[...document.querySelectorAll('.matrix-box')]"
    for width in (1280, 375):
        browser.resize(width)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        widest = browser.evaluate(f"Math.max(...{boxes}.map(b => b.scrollWidth - b.clientWidth))")
        assert (widest == 0) is (width == 1280)
    stuck = (
        f"{boxes}.every(b => {{ b.scrollLeft = 999; return Math.abs("
        "b.querySelector('tbody th').getBoundingClientRect().left - b.getBoundingClientRect().left) < 2 })"
    )
    assert browser.evaluate(stuck)
    size = browser.evaluate(
        "(c => [c.width, c.height])(document.querySelector('td .outcome').getBoundingClientRect())"
    )
    assert size == [20, 20]


CARD = ".papers a[href='notebooks/snip.html']"
BOARD = "article a[href='book/scoreboard.html']"
# a reader's question, what is clicked from the start page on, and where the answer then stands
QUESTIONS = [
    ("Is SNIP's table reproduced?", [BOARD, "a[href='#scoreboard-snip']"], "#scoreboard-snip", "At the paper's size the errors agree with those of its tables"),
    ("What failed?", ["a.count.fails"], "form.filters output", " of "),
    ("What do you take from the paper, and what came out?", [CARD], "article", "SNIP"),
    ("Where is the paper?", [], ".papers a[href='https://arxiv.org/abs/1810.02340']", "arXiv"),
    ("What builds on SNIP?", [], "figure.map svg", "connection sensitivity"),
    ("What does reproduced mean?", [], "article", "within the bound"),
    ("How do I rerun it?", [], ".ways", "make book"),
    ("How do I run it without installing?", ["a[href='book/rerunning.html']"], "article", "Colab"),
    ("How do I run it with other values?", ["a[href='book/parameters.html']"], "article", "companion run"),
    ("How do I use it on my own data?", ["article a[href='book/api.html']", "article a[href='api/snip.html']"], "article", "connection_sensitivity"),
    ("What data does it need?", ["a[href='book/data.html']"], "article", "MNIST"),
    ("Can I have the numbers as a file?", [BOARD, "article a[href='../claims.json']"], "body", '"claims"'),
]  # fmt: skip


@pytest.mark.parametrize(("question", "clicks", "where", "answer"), QUESTIONS)
def test_what_a_reader_asks_is_answered_in_two_clicks(browser, question, clicks, where, answer):
    assert len(clicks) <= 2
    browser.resize(1280)
    browser.open(url("index.html"))
    for target in clicks:
        find = f"[...document.querySelectorAll({json.dumps(target)})].find({SHOWN})"
        assert browser.evaluate(f"!!{find}"), target
        before = browser.evaluate("location.href")
        browser.evaluate(f"{find}.click()")
        browser.wait_for(
            f"location.href != {json.dumps(before)} && document.readyState == 'complete'"
        )
    text = browser.wait_for(f"document.querySelector({json.dumps(where)})?.textContent")
    assert answer in text, question


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("page", ["index.html", "book/scoreboard.html"])
def test_outcomes_are_legible_and_no_type_is_tiny(browser, page, theme):
    browser.resize(1280)
    browser.open(url(page), theme)
    browser.wait_for(f"document.documentElement.dataset.theme == '{theme}'")
    shown = browser.evaluate(
        "[...document.querySelectorAll('.bar > *, .key, .outcome, a.count')].map(e => {"
        " const s = getComputedStyle(e); let g = e;"
        " while (getComputedStyle(g).backgroundColor == 'rgba(0, 0, 0, 0)' && g.parentElement) g = g.parentElement;"
        " return [e.className, s.color, getComputedStyle(g).backgroundColor, s.backgroundImage] })"
    )
    assert len(shown) > 20
    # a striped ground is no one colour: both of its stripes count
    pairs = [
        (name, ink, ground)
        for name, ink, plain, striped in shown
        for ground in (re.findall(r"rgb\([^)]*\)", striped) or [plain])
    ]
    assert [pair for pair in pairs if contrast(*pair[1:]) < 4.5] == []
    sizes = browser.evaluate(
        "[...document.querySelectorAll('article *')].filter(e => [...e.childNodes].some("
        "n => n.nodeType == 3 && n.textContent.trim()) && !e.closest('.visually-hidden, style, script')"
        " && e.getClientRects().length && !e.closest('a.headerlink, pre'))"
        ".map(e => [parseFloat(getComputedStyle(e).fontSize) * (e.closest('svg')?.getScreenCTM().a ?? 1),"
        " e.className.baseVal ?? e.className, e.textContent.slice(0, 30)]).filter(([px]) => px && px < 11.5)"
    )
    assert sizes == []


# Half of a chapter's elements colour a word of its code: one of each kind in a page is enough.
ONE_OF_EACH = """{
  const seen = new Set()
  for (const word of document.querySelectorAll('.highlight pre span[class]:not(:has(*))')) {
    const kind = word.closest('.cell_input, .output, .highlight').className + word.className
    seen.has(kind) ? word.replaceWith(word.textContent) : seen.add(kind)
  }
}"""


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", PHONE)])
@pytest.mark.parametrize("page", [*(f"notebooks/{stem}.html" for stem in stems()), "other pages"])
def test_axe_finds_nothing_serious(site, browser, page, theme, width, monkeypatch):
    monkeypatch.setattr(browser, "patience", 120)  # a page of many names takes long
    axe = pytest.importorskip("axe_core_python", reason="comes with the test dependencies")
    script = Path(axe.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    browser.resize(width)
    wrong = {}
    # of the pages that one template makes from docstrings, and that take minutes, the smallest
    made = ("book/api/", "genindex", "notebooks/")
    others = [name for name in shown_pages(site) if not name.startswith(made)]
    for name in [*others, "book/api/snip.html"] if page == "other pages" else [page]:
        browser.open(url(name), theme)
        browser.evaluate(script)
        browser.evaluate(ONE_OF_EACH)
        # a button whose colour still changes to the theme's has too little contrast on the way
        browser.evaluate(
            "document.getAnimations().forEach(a => a instanceof CSSTransition && a.finish())"
        )
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


def chapter_pages(site: Mapping) -> list[str]:
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


def chapters_in_order(site: Mapping) -> list:
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
    assert {"✓ reproduced", "✗ not reproduced", "– not run here", "stale", "earlier code"} <= {
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
