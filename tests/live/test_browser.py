"""The page at ``/docs`` in a real browser, which knows no other host than the server."""

from collections.abc import Iterator

import browser
import pytest
from browser import Browser, browsing

from server import Live

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def open_browser(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests."""
    with browsing(tmp_path_factory.mktemp("profile"), live.address) as found:
        yield found


@pytest.fixture
def page(live: Live, open_browser: Browser) -> Iterator[Browser]:
    """The page as it is when it has been read, on a desk. Whatever a test does, it must ask nobody else for anything,
    and complain of nothing: no error, nothing that the policy forbids."""
    open_browser.resize(1280, 900)
    open_browser.prefer("light")
    open_browser.open(f"{live.address}/docs")
    open_browser.until("document.querySelectorAll('#sections a').length > 0")
    yield open_browser
    assert open_browser.complaints == []
    asked = [url for url in open_browser.requests if not url.startswith(("about:", f"blob:{live.address}/"))]
    assert [url for url in asked if not url.startswith(f"{live.address}/")] == []
    assert f"{live.address}/docs/docs.js" in asked


def test_all_of_the_document_is_there(page: Browser) -> None:
    """Every operation, socket and schema once, each section in the list of sections, and a command for each."""
    counted = page.value("""(async () => {
      const root = await (await fetch("/openapi.json")).json();
      const operations = Object.values(root.paths).flatMap(Object.values);
      const named = [...operations.map((each) => each.operationId),
        ...Object.keys(root.components.schemas).map((name) => `schema-${name}`)];
      return {
        missing: named.filter((id) => document.querySelectorAll(`[id="${id}"]`).length !== 1),
        sockets: document.querySelectorAll("#sockets details").length - Object.keys(root["x-websockets"]).length,
        silent: operations.filter(({ operationId }) =>
          !document.querySelector(`#${operationId} pre`).textContent.startsWith("curl ")),
        broken: [...document.querySelectorAll("a[href^='#']")].filter((a) =>
          !document.getElementById(a.hash.slice(1))).length,
        sections: document.querySelectorAll("#sections a").length - root.tags.length,
      };
    })()""")
    assert counted == {"missing": [], "sockets": 0, "silent": [], "broken": 0, "sections": 3}


def test_it_paints(page: Browser) -> None:
    """What the form says; what is refused is told in the server's words."""
    body = '{"prompt": "a red circle", "width": 64, "height": 64, "steps": 2, "seed": 3}'
    page.value(f"document.getElementById('body').value = `{body}`")
    page.value("document.querySelector('#painting button').click()")
    page.until("document.getElementById('picture').naturalWidth === 64")
    assert page.value("document.getElementById('said').textContent") == "200, seed 3"
    assert page.value("document.getElementById('picture').alt") == "a red circle"
    page.value("document.getElementById('body').value = '{}'")
    page.value("document.querySelector('#painting button').click()")
    page.until("document.getElementById('said').textContent.includes('prompt')")
    assert "status of 422" in page.complaints.pop()  # which Chromium notes of any answer that is an error


def test_finding(page: Browser) -> None:
    """Words narrow the page down to what has them, aliases too; headings above nothing are gone."""

    def type_(words: str) -> list[str]:
        page.value("document.getElementById('find').select()")
        page.call("Input.insertText", text=words) if words else page.press("Delete")
        named = (
            "[...document.querySelectorAll('details[data-text]')].filter((e) => e.checkVisibility()).map((e) => e.id)"
        )
        shown: list[str] = page.value(named)
        return shown

    everything = type_("")
    assert type_("api/v1 NOTHING of the kind") == []
    found = type_("inpaint POST")
    assert "post_v1_inpaint" in found
    assert "post_api_v1_generate_inpaint" in found
    assert "get_v1_jobs" not in found
    assert page.value("document.getElementById('found').textContent") == f"{len(found)} found"
    assert page.value("document.getElementById('schemas').checkVisibility()") is False
    assert type_("") == everything


def test_addresses_lead_to_their_places(live: Live, page: Browser) -> None:
    """To an operation, to an alias that is folded away, and by a link to a schema."""
    for name in ("get_v1_models", "post_api_v1_generate_txt2img", "schema-Recipe"):
        page.open(f"{live.address}/docs#{name}")
        page.until(f"document.getElementById('{name}')?.open")
        top = page.value(f"document.getElementById('{name}').getBoundingClientRect().top")
        assert -1 <= top < 900
    page.value("document.querySelector('#post_generate a[href=\"#schema-Draft\"]').click()")
    page.until("document.getElementById('schema-Draft').open")


def test_keys_alone(page: Browser) -> None:
    """By Tab from the top: the link, the search, the sections, the form, an operation, which Enter opens and shuts."""
    seen = []
    for _ in range(40):
        page.press("Tab")
        seen.append(page.value("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "SUMMARY":
            break
    assert [name for name in seen if name not in ("A", "SUMMARY")] == ["find", "key", "body", "BUTTON"]
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for is_open in (True, False):
        page.press("Enter", "\r")
        page.until(f"document.activeElement.parentElement.open === {str(is_open).lower()}")


@pytest.mark.parametrize("width", [320, 768, 1920])
def test_no_screen_is_too_narrow(page: Browser, width: int) -> None:
    """With all operations open, one of them to its depth, nothing reaches beyond the page's side."""
    page.resize(width, 800)
    page.value("document.querySelectorAll('details[data-text]').forEach((each) => { each.open = true; })")
    for _ in range(4):  # what is inside is made when what is around it is opened
        page.value("document.querySelectorAll('#post_generate details').forEach((each) => { each.open = true; })")
        page.value("new Promise(requestAnimationFrame)")
    assert page.value("document.querySelectorAll('#post_generate pre').length") > 20
    assert page.value("document.scrollingElement.scrollWidth") <= width
    if width < 400:
        cells = "[...document.querySelectorAll('#post_generate td')].map((each) => each.getBoundingClientRect().right)"
        assert page.value(f"Math.max(...{cells})") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(page: Browser, scheme: str) -> None:
    """By day and by night: every text's contrast is that of WCAG 2.2's level AA, 4.5 to 1."""
    page.prefer(scheme)
    corner = page.picture().getpixel((2, 2))
    assert isinstance(corner, tuple)
    assert (sum(corner) > 600) == (scheme == "light")
    poor = page.value("""(() => {
      const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const light = (colour) => {
        const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const [r, g, b] = parts(colour).map((v) => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const ground = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return parts(colour)[3] === 0 ? ground(element.parentElement) : colour;
      };
      const poor = new Set();
      for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].filter((each) => each.nodeType === 3 && each.data.trim());
        if (!texts.length || !element.checkVisibility()) continue;
        const [a, b] = [light(getComputedStyle(element).color), light(ground(element))];
        if ((Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5) poor.add(element.outerHTML.slice(0, 80));
      }
      return [...poor];
    })()""")
    assert poor == []
