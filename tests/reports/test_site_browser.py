"""The site in a real browser, from the file system: filters, sorting, links, keyboard, phone, print, no network."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports import load_run
from reports.site.board import Entry, Rank, entries, rank
from reports.site.publish import publish
from tasks import discover
from tests.reports import synthetic, synthetic_programs, synthetic_trials

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: nox -s browser")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
OF_CONTENDERS = ("method", "model", "backend", "track", "verdict")
FILTERS = ("task", "dtype", "dim", "mask", *OF_CONTENDERS, "run")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        synthetic.h100_run(folder / "large"),
        synthetic.cpu_run(folder / "cpu"),
        synthetic_trials.generation_run(folder / "made"),
        synthetic_programs.run(folder / "programs"),
    ]


@pytest.fixture(scope="module")
def site(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "site"
    publish(runs, out, discover())
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


class Visit:
    """A page that is open, and what went wrong in it."""

    def __init__(self, browser: Any, site: Path, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.page = self.context.new_page()
        self.site = site
        self.wrong: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self.wrong.append(f"error: {e}"))
        self.page.on("requestfailed", lambda r: self.wrong.append(f"failed: {r.url}"))
        self.page.on("request", self._asked)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.wrong.append(f"network: {request.url}")

    def open(self, path: str) -> Any:
        self.page.goto("about:blank")
        self.page.goto(f"file://{self.site}/{path}")
        return self.page


@pytest.fixture
def visit(browser: Any, site: Path) -> Iterator[Visit]:
    made = Visit(browser, site, viewport={"width": 1280, "height": 900})
    yield made
    made.context.close()
    assert made.wrong == []


def matching(found: list[Entry], chosen: dict[str, str], names: tuple[str, ...]) -> list[Entry]:
    return [e for e in found if all(str(getattr(e, k)) == v for k, v in chosen.items() if k in names)]


def test_the_script_ranks_as_the_harness_does_whatever_is_chosen(visit: Visit, runs: list[Path]) -> None:
    known = [e for run in runs for e in entries(load_run(run))]
    lot = random.Random(7)
    page = visit.open("index.html")
    for _ in range(40):
        target = lot.choice(sorted({e.target for e in known}))
        chosen: dict[str, str] = {"target": target}
        for name in lot.sample(FILTERS, lot.randrange(4)):
            values = sorted({str(getattr(e, name)) for e in known if e.target == target} - {""})
            chosen |= {name: lot.choice(values)} if values else {}
        page.evaluate("h => { location.hash = h; }", "&".join(f"{k}={v}" for k, v in chosen.items()))
        page.wait_for_timeout(30)
        shown = page.evaluate("window.RANKS")
        own = matching(known, chosen, ("target", *FILTERS))
        wanted = rank(own, matching(known, chosen, ("target", "task", "dtype", "dim", "mask", "run")))
        assert [(r["run"], r["contender"]) for r in shown] == [(r.run, r.contender) for r in wanted], chosen
        for told, meant in zip(shown, wanted, strict=True):
            same(told, meant)


def same(told: dict[str, Any], meant: Rank) -> None:
    assert (told["measured"], told["failed"], told["cells"]) == (meant.measured, meant.failed, meant.cells)
    assert (told["faster"], told["whole"]) == (meant.faster, meant.whole)
    assert told["against"] == ", ".join(meant.against)
    assert told["counted"] == pytest.approx(meant.counted, rel=1e-4)
    if meant.geomean is None:
        assert told["geomean"] is None
    else:
        assert told["geomean"] == pytest.approx(meant.geomean.median, rel=1e-4)
        assert (told["low"], told["high"]) == pytest.approx((meant.geomean.low, meant.geomean.high), rel=1e-4)


def test_filters_narrow_both_tables_and_stand_in_the_address(visit: Visit) -> None:
    page = visit.open("index.html")
    before = page.locator("#entries tbody tr").count()
    page.select_option("#f-dim", "64")
    page.select_option("#f-task", "mha")
    assert "dim=64" in page.url and "task=mha" in page.url
    shapes = page.locator("#entries tbody tr td:nth-child(3)").all_inner_texts()
    assert shapes and all("d64" in s for s in shapes) and len(shapes) <= before
    page.reload()
    assert page.input_value("#f-dim") == "64"
    page.get_by_role("button", name="Clear filters").click()
    assert page.input_value("#f-dim") == "" and "dim" not in page.url


def test_a_column_sorts_both_ways_and_says_so(visit: Visit) -> None:
    page = visit.open("index.html")
    button = page.locator('#ranks th[data-key="tflops"] button')
    button.click()
    assert page.get_attribute('#ranks th[data-key="tflops"]', "aria-sort") == "descending"
    down = [float(x) for x in page.locator("#ranks tbody td:nth-child(7)").all_inner_texts() if x]
    assert down == sorted(down, reverse=True) and len(down) > 3
    button.click()
    up = [float(x) for x in page.locator("#ranks tbody td:nth-child(7)").all_inner_texts() if x]
    assert up == down[::-1]
    button.click()
    assert page.get_attribute('#ranks th[data-key="tflops"]', "aria-sort") == "none"


def test_targets_are_chosen_not_mixed_and_all_of_it_works_by_keyboard(visit: Visit) -> None:
    page = visit.open("index.html")
    page.focus("input[name=target]:checked")
    page.keyboard.press("ArrowRight")
    assert "target=cpu" in page.url
    assert "cpu" in page.inner_text("#scope") and "GFLOP/s" in page.inner_text("#ranks thead")
    assert set(page.locator("#ranks tbody td:last-child").all_inner_texts()) == {"cpu"}
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "f-task"
    page.focus('#ranks th[data-key="noise"] button')
    page.keyboard.press("Enter")
    assert page.get_attribute('#ranks th[data-key="noise"]', "aria-sort") == "descending"
    assert page.evaluate("document.activeElement.closest('th').dataset.key") == "noise"


def test_a_figure_leads_to_its_record_and_a_name_to_its_kernel(visit: Visit) -> None:
    page = visit.open("index.html#target=h100&run=made&task=mha_causal")
    page.locator("#entries tbody a[title^=record]").first.click()
    page.wait_for_url("**/runs/made/report.html#r*")
    page = visit.open("index.html#target=h100&run=large")
    page.locator("#entries a[href^=kernels]").first.click()
    page.wait_for_url("**/kernels/*.html")
    assert page.locator("#source pre").first.inner_text().strip()
    page.locator("#results tbody a").first.click()
    assert page.locator("dl:target").is_visible()


def page_of(site: Path, name: str) -> str:
    """The page of a kernel of the run `programs`."""
    for page in sorted((site / "kernels").glob("*.html")):
        if f"<h1>{name}</h1>" in page.read_text(encoding="utf-8"):
            return page.relative_to(site).as_posix()
    raise AssertionError(f"{name} has no page")


@pytest.mark.parametrize(("width", "beside"), [(1280, True), (390, False)], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["reference", "tuned", "own-schedule", "search", "translated", "before"])
def test_program_and_schedule_stand_beside_the_source_or_above_it(
    browser: Any, site: Path, name: str, width: int, beside: bool
) -> None:
    made = Visit(browser, site, viewport={"width": width, "height": 900})
    page = made.open(page_of(site, name))
    origin, source = (page.locator(part).bounding_box() for part in ("#source .origin", "#source .source"))
    if beside:
        assert source["x"] >= origin["x"] + origin["width"] and abs(source["y"] - origin["y"]) < 2
    else:
        assert source["y"] >= origin["y"] + origin["height"] and source["x"] == origin["x"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = [
        (title, page.locator(where).first.bounding_box()["y"])
        for title, where in (
            ("TL sketch", ".origin details:has(summary:text-is('TL sketch')) pre"),
            ("TL program", ".origin details:has(summary:text-is('TL program')) pre"),
            ("Schedule", ".origin .schedule"),
        )
        if page.locator(where).count() and page.locator(where).first.is_visible()
    ]
    by_models = ("own-schedule", "search", "translated")
    wanted = ["TL sketch"] * (name in by_models) + ["TL program"] * (name != "before") + ["Schedule"]
    assert [title for title, _ in shown] == wanted
    assert [y for _, y in shown] == sorted(y for _, y in shown)
    assert page.locator("#source .source pre").first.is_visible()
    assert page.locator("#source .source pre span[class]").count() > 1, "in colours"
    assert page.locator(".schedule .choices").count() == {"translated": 0, "reference": 1, "before": 1}.get(
        name, 2
    )
    made.context.close()
    assert made.wrong == []


def test_what_scrolls_on_a_kernels_page_is_reached_by_keyboard(visit: Visit, site: Path) -> None:
    page = visit.open(page_of(site, "search"))
    inert = page.evaluate(
        """[...document.querySelectorAll("#source *")].filter(e =>
            ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth
            && e.tabIndex < 0).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert inert == []
    page.locator("#source .source pre").first.focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('#source .source pre').scrollTop > 0")


def test_in_print_a_kernels_program_schedule_and_source_are_whole(visit: Visit, site: Path) -> None:
    page = visit.open(page_of(site, "tuned"))
    page.emulate_media(media="print")
    for part in (".origin pre", ".schedule .choices", ".source pre"):
        box = page.locator(f"#source {part}").first
        assert box.is_visible()
        assert box.evaluate("e => e.scrollHeight <= e.clientHeight + 1 && e.scrollWidth <= e.clientWidth + 1")
    assert page.pdf()[:5] == b"%PDF-"


PAGES = ("index.html", "runs/index.html", "paper.html", "method.html", "tasks/mha_causal.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_fits_its_window_and_can_be_read(browser: Any, site: Path, width: int, dark: bool) -> None:
    how = {"viewport": {"width": width, "height": 800}, "color_scheme": "dark" if dark else "light"}
    made = Visit(browser, site, **how)
    kernels = sorted(p.relative_to(site).as_posix() for p in (site / "kernels").glob("*.html"))
    for path in (*PAGES, kernels[0], kernels[-1]):
        page = made.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert contrast(ink, paper) > 7, path
        assert page.locator("h1").count() == 1
    made.context.close()
    assert made.wrong == []


def contrast(one: str, other: str) -> float:
    """By WCAG, of two colours as `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_without_scripts_the_front_page_still_has_a_ranking_and_says_what_is_missing(
    browser: Any, site: Path
) -> None:
    made = Visit(browser, site, java_script_enabled=False)
    page = made.open("index.html")
    assert page.locator("#ranks tbody tr").count() > 2
    assert "need JavaScript" in page.inner_text("body")
    assert not page.locator("#filters").is_visible()
    made.context.close()


def test_in_print_the_ranking_stays_and_the_controls_go(visit: Visit) -> None:
    page = visit.open("index.html")
    page.emulate_media(media="print")
    assert not page.locator("#filters").is_visible() and page.locator("#ranks").is_visible()
    assert page.pdf()[:5] == b"%PDF-"
