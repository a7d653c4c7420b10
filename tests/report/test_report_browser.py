"""The report in a real browser: Debian's Chromium, driven by Playwright."""

import shutil

import pytest

from harness.records.store import Store
from harness.report import content, page
from tests.records import worlds

CHROMIUM = shutil.which("chromium")
WIDTHS = (360, 800, 1400)
HOSTILE = "<script>document.title='taken'</script>"
METHODS = {"lora": 0.8, "lora-wide": 0.7, "coop": 0.5, HOSTILE: 0.6}
LONG = "longest_" * 20

pytestmark = pytest.mark.browser
if CHROMIUM is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="there is no Playwright: pip install -e '.[test]'"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A file with four tables, in which a method and a dataset have names that are markup; the
    names of one table are very long."""
    folder = tmp_path_factory.mktemp("results")
    asked = {"seeds": (1, 2), "images": 40, "losses": (2.0, 1.0)}
    worlds.write(folder, METHODS, datasets=("a_dataset", HOSTILE), **asked)
    for shots in (1, 4):
        worlds.write(folder, {"coop": 0.4}, task="few_shot", evaluations=("accuracy",),
                     shots=shots, **asked)  # fmt: skip
    worlds.write(folder, {LONG: 0.5, LONG[1:]: 0.7}, datasets=(LONG,), backbone=LONG, **asked)
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(page.page(content.report(Store(folder).records())), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, report):
    """opened(width, scheme): the report in a window; in the end nothing was said and fetched."""
    pages, said, fetched = [], list[str](), list[str]()

    def open_at(width=1400, scheme="light"):
        shown = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(shown)
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: fetched.append(request.url))
        shown.goto(report.as_uri())
        return shown

    yield open_at
    for shown in pages:
        shown.close()
    assert said == []
    assert set(fetched) == {report.as_uri()}


def names(shown):
    """Of the rows of the leaderboard that are seen, in their order."""
    return shown.locator("#t1 .board tbody tr:visible th").all_text_contents()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_width_scrolls_the_page_sideways(opened, tmp_path, width, scheme):
    shown = opened(width, scheme)
    shown.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
    shown.locator("#table").select_option("")
    assert shown.evaluate("document.documentElement.scrollWidth") == width


def test_a_button_sorts_and_says_so(opened):
    shown = opened()
    best = names(shown)
    button = shown.locator("#t1 .board thead button").first
    button.focus()
    shown.keyboard.press("Enter")
    assert names(shown) == [HOSTILE, "coop", "lora", "lora-wide"]
    assert shown.locator("#t1 .board th[aria-sort]").get_attribute("aria-sort") == "ascending"
    shown.keyboard.press("Enter")
    assert names(shown) == ["lora-wide", "lora", "coop", HOSTILE]
    shown.get_by_role("button", name="HM").first.click()
    assert names(shown) == best == ["lora", "lora-wide", HOSTILE, "coop"]


def test_a_family_and_a_text_filter_rows(opened):
    shown = opened()
    shown.locator("#t1 .family").select_option("lora")
    assert names(shown) == ["lora", "lora-wide"]
    shown.locator("#t1 .text").fill("WIDE")
    assert names(shown) == ["lora-wide"]
    assert shown.locator("#t1 .count").text_content() == "1 of 4 methods"
    assert shown.locator("#t1 .heat tbody tr:visible").count() == 1


def test_a_dataset_is_chosen(opened):
    shown = opened()
    shown.locator("#t1 .dataset").first.select_option("a_dataset")
    assert shown.locator("#t1 .heat thead th").nth(2).text_content() == "a_dataset"
    row = shown.locator("#t1 .board tr[data-m=lora]")
    expected = float(shown.locator("#t1 .heat tr[data-m=lora] td").nth(1).text_content())
    assert float(row.locator(".main").text_content()) == pytest.approx(expected, abs=0.051)
    assert row.locator(".place").text_content() == "–"
    assert shown.locator("#t1 details.dataset:visible").count() == 1


def test_one_table_is_shown_at_a_time_and_links_lead_to_it(opened):
    shown = opened()
    assert shown.locator(".chapter:visible").count() == 1
    shown.locator("nav a[href='#t2']").click()
    shown.locator("#t2").wait_for()  # the browser tells the script a little later
    assert shown.locator(".chapter:visible").get_attribute("id") == "t2"


def test_two_methods_are_compared(opened):
    shown = opened()
    shown.locator("#t1 .a").select_option("lora")
    shown.locator("#t1 .b").select_option("coop")
    verdict = shown.locator("#t1 .verdict").text_content()
    assert verdict.startswith("lora is ")
    assert "points above coop. They are told apart (p" in verdict


def test_a_cost_and_a_line_are_chosen(opened):
    shown = opened()
    shown.get_by_role("button", name="time of a fit").first.click()
    assert "It was not measured" in shown.locator("#t1 figure:visible").text_content()
    button = shown.locator("#t1 .legend button[data-m=coop]")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert shown.locator("#t1 .lines .lit[data-m=coop]").count() == 0


def test_the_switch_goes_round_the_colours(opened):
    shown = opened(scheme="light")
    grounds = []
    for _ in range(3):
        shown.locator("#theme").click()
        grounds.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
    light, dark, system = grounds
    assert light == system != dark
    assert shown.locator("#theme").text_content() == "Colours: system"


def test_a_name_that_is_markup_is_text(opened):
    shown = opened()
    assert shown.title().startswith("Report: ")
    assert HOSTILE in names(shown)
    assert shown.locator("script").count() == 2


def test_without_scripts_all_tables_are_there(chromium, report):
    context = chromium.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(report.as_uri())
    assert shown.locator(".chapter:visible").count() == 4
    assert names(shown)[0] == "lora"
    context.close()
