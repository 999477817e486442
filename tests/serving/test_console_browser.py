"""The console in a real, headless Chromium: asking, seeing why, saying what one thinks of it, by mouse and by keyboard.

Left out, with the reason, where playwright or a Chromium is missing.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ruvllm.database.pool import Database
from ruvllm.errors import AuthenticationError, OverloadedError
from ruvllm.memory.records import NewNode
from ruvllm.serving.admission import CallerLimits
from ruvllm.serving.fake import FakeAnswerer
from ruvllm.serving.keys import SCOPES, Caller
from ruvllm.serving.service import GatewayService
from ruvllm.settings import Settings
from tests.serving.consoled import add_night, gateway_of
from tests.serving.gateway import serving

PATIENCE_MS = 60_000
QUESTION = "What is the capital of Ghana?"
CAPITAL = "Ghana - Geography. Capital: Accra. Location: Western Africa."
NEAR = "Accra - Port city on the Atlantic coast."
POISON = "<img src=x onerror='window.taken=1'><script>window.taken=1</script> The capital of Ghana"

Opens = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser: playwright's own where it was downloaded, else the machine's."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).exists() else shutil.which("chromium") or shutil.which("google-chrome")
        if found is None:
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@contextmanager
def watched(chromium: Any, url: str, **options: Any) -> Iterator[Any]:
    """The console's page; at its end nothing may have gone wrong in it, and nothing been asked of another address."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, **options)
    context.set_default_timeout(PATIENCE_MS)
    page, wrong, foreign = context.new_page(), [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda request: None if request.url.startswith(url) else foreign.append(request.url))
    try:
        page.goto(f"{url}/console")
        yield page
        assert (wrong, foreign) == ([], [])
    finally:
        context.close()


@pytest.fixture
def opens(chromium: Any, settings: Settings) -> Iterator[Opens]:
    """Opens the console of a gateway."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def open_console(service: GatewayService, **options: Any) -> Any:
            url = stack.enter_context(serving(settings, service))
            return stack.enter_context(watched(chromium, url, **options))

        yield open_console


@pytest.fixture
def real(database: Database, settings: Settings) -> GatewayService:
    return gateway_of(database, settings, lambda prompt: "Accra is the capital")


def ask(page: Any, question: str = QUESTION) -> Any:
    """Asks by keyboard alone; the turn, when its reasons are there."""
    page.locator("#question:focus").fill(question)
    page.keyboard.press("Enter")
    page.locator(".below .tier").last.wait_for()
    return page.locator(".turn").last


def remember(service: GatewayService, *texts: str) -> tuple[int, ...]:
    return service.answerer.memory.add([NewNode(text) for text in texts]).ids


# --- an answer and its reasons ----------------------------------------------------------------------------------------


def test_an_answer_comes_with_what_decided_it(opens: Opens, real: GatewayService) -> None:
    found, near = remember(real, CAPITAL, NEAR)
    real.answerer.memory.link_all([(found, near, "Cites", 0.5)], "a test")
    page = opens(real)
    turn = ask(page)
    assert turn.locator(".said").inner_text().strip() == "Accra is the capital"
    why = page.locator("#why")
    tier = turn.locator(".tier").inner_text()
    assert why.locator(".verdict").inner_text() == tier
    assert "no router was promoted yet" in why.locator(".reason").inner_text()
    stages = why.locator(".legend li").all_inner_texts()
    assert [stage.split("\n")[0] for stage in stages] == [
        "Embed", "Search", "Features", "Route", "Assemble", "Generate", "Store",
    ]  # fmt: skip
    why.locator('[data-ready="yes"]').wait_for()
    assert why.locator(f'svg [data-node="{found}"]').count() == 1
    assert why.locator(f'svg [data-node="{near}"]').count() == 1
    assert why.locator("svg line.near").count() == 1


def test_a_node_is_read_by_keyboard(opens: Opens, real: GatewayService) -> None:
    [found] = remember(real, CAPITAL)
    page = opens(real)
    ask(page)
    node = page.locator(f'svg [data-node="{found}"]')
    node.focus()
    page.keyboard.press("Enter")
    assert CAPITAL in page.locator(".node-text").inner_text()
    page.locator(f'[data-row="{found}"]').focus()
    page.keyboard.press("Enter")
    assert page.locator(".node-text").count() == 0


def test_earlier_turns_go_with_a_question(opens: Opens, real: GatewayService) -> None:
    page = opens(real)
    ask(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "And its river?")
    said = [message["content"].strip() for message in sent.value.post_data_json["messages"]]
    assert said == [QUESTION, "Accra is the capital", "And its river?"]
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".turn").count() == 0


def test_a_decision_can_be_had_without_an_answer(opens: Opens, real: GatewayService, database: Database) -> None:
    page = opens(real)
    page.locator("#question").fill(QUESTION)
    page.get_by_role("button", name="Decide only").click()
    page.locator(".verdict").wait_for()
    assert page.locator(".said").inner_text() == "decided, not answered"
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM serving.interactions").fetchone() == (0,)


def test_thumbs_and_corrections_are_stored(opens: Opens, real: GatewayService, database: Database) -> None:
    page = opens(real)
    turn = ask(page)
    turn.get_by_role("button", name="Bad answer").click()
    page.get_by_text("Noted, thank you").wait_for()
    assert turn.get_by_role("button", name="Bad answer").get_attribute("aria-pressed") == "true"
    turn.get_by_role("button", name="Correct").click()
    page.keyboard.type("Accra, in Ghana")
    with page.expect_response("**/v1/feedback"):
        page.get_by_role("button", name="Send the correction").click()
    with database.transaction() as connection:
        rows = connection.execute("SELECT rating, correction FROM serving.feedback ORDER BY id").fetchall()
    assert rows == [(1, None), (None, "Accra, in Ghana")]


def test_what_is_poisoned_is_shown_as_text(opens: Opens, database: Database, settings: Settings) -> None:
    service = gateway_of(database, settings, lambda prompt: POISON)
    [found] = remember(service, POISON)
    page = opens(service)
    turn = ask(page, POISON)
    assert turn.locator(".said").inner_text().strip() == POISON
    assert turn.locator(".asked").inner_text() == POISON
    page.locator(f'svg [data-node="{found}"]').click()
    assert POISON in page.locator(".node-text p").inner_text()
    assert page.locator("#turns img, #turns script, #why img, #why script").count() == 0
    assert page.evaluate("window.taken ?? null") is None


def test_the_browser_itself_refuses_markup(opens: Opens, service: GatewayService) -> None:
    page = opens(service)
    tried = "() => { try { document.body.innerHTML = '<b>x</b>'; return 'let in' } catch (e) { return e.name } }"
    assert page.evaluate(tried) == "TypeError"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_stop_reaches_the_model(opens: Opens, service: GatewayService, answerer: FakeAnswerer) -> None:
    answerer.pause = threading.Event()
    page = opens(service)
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_text("You ", exact=False).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    assert answerer.speeches[0].cancelled.wait(20)
    page.get_by_role("button", name="Send").wait_for()


def test_a_refusal_is_said_and_can_be_tried_again(
    opens: Opens, service: GatewayService, answerer: FakeAnswerer
) -> None:
    answerer.error = OverloadedError("the queue is full")
    page = opens(service)
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert").filter(has_text="the queue is full")
    alert.wait_for()
    answerer.error = None
    alert.get_by_role("button", name="Try again").click()
    page.get_by_text(f"You asked: {QUESTION}").wait_for()
    assert page.locator(".turn").count() == 1


def test_an_error_in_the_middle_is_said(opens: Opens, service: GatewayService, answerer: FakeAnswerer) -> None:
    answerer.late_error = OverloadedError("its process was taken away")
    page = opens(service)
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="its process was taken away").wait_for()


def test_a_key_stays_in_its_tab(opens: Opens, service: GatewayService, monkeypatch: pytest.MonkeyPatch) -> None:
    def caller(authorization: str | None, peer: str | None, site: str | None) -> Caller:
        if authorization != "Bearer ruvllm-a-key":
            raise AuthenticationError("no API key")
        return Caller("k1", "default", frozenset(SCOPES), CallerLimits())

    monkeypatch.setattr(service.door, "caller", caller)
    page = opens(service)
    page.locator("#question").fill(QUESTION)
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.get_by_label("Key", exact=True).fill("ruvllm-a-key")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Try again").click()
    page.get_by_text(f"You asked: {QUESTION}").wait_for()
    kept = page.evaluate(
        "[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie, location.href]"
    )
    assert ["ruvllm-a-key" in place for place in kept] == [True, False, False, False]
    page.get_by_role("button", name="API key").click()
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("sessionStorage.length") == 0


# --- the running state, and how it looks ------------------------------------------------------------------------------


def test_the_running_state_is_shown_and_kept_fresh(opens: Opens, real: GatewayService, database: Database) -> None:
    for night, regret in enumerate((0.42, 0.31, 0.24), 1):
        add_night(database, night, regret, promoted=night > 1)
    page = opens(real)
    ask(page)
    page.get_by_role("link", name="Running state").click()
    page.locator("svg.chart").wait_for()
    assert page.locator("svg.chart .point").count() == 3
    assert page.locator("svg.chart .promoted").count() == 2
    page.get_by_text("As a table").click()
    assert page.locator("#running-cards details tbody tr td").nth(1).inner_text() == "0.240"
    add_night(database, 4, 0.2)
    page.locator("svg.chart .point").nth(3).wait_for()
    assert page.locator("#running-cards details").get_attribute("open") is not None
    assert "smollm2-135m" in page.locator("table").first.inner_text()


def test_a_gateway_that_ends_is_noticed(chromium: Any, settings: Settings, service: GatewayService) -> None:
    with serving(settings, service) as url:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(f"{url}/console#running")
        page.locator(".card").first.wait_for()
    page.get_by_text("the gateway does not answer").wait_for(timeout=PATIENCE_MS)
    context.close()


CONTRASTS = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(opens: Opens, real: GatewayService, database: Database, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1, 3 to 1 for large text."""
    remember(real, CAPITAL, NEAR)
    add_night(database, 1, 0.4)
    page = opens(real, color_scheme=scheme)
    ask(page)
    page.locator('#why [data-ready="yes"]').wait_for()
    page.locator("#why .nodes button").first.click()
    assert page.evaluate(CONTRASTS) == []
    page.get_by_role("link", name="Running state").click()
    page.locator("svg.chart").wait_for()
    assert page.evaluate(CONTRASTS) == []
    page.locator("#updated").evaluate("each => each.style.setProperty('color', 'var(--line)')")
    assert len(page.evaluate(CONTRASTS)) == 1  # so it does see what is too faint


def test_the_theme_is_chosen_and_kept(opens: Opens, service: GatewayService) -> None:
    page = opens(service, color_scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button = page.get_by_role("button", name="Theme")
    button.click()
    assert page.evaluate(paper) == light
    button.click()
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark


def test_a_narrow_screen_needs_no_sideways_scrolling(opens: Opens, real: GatewayService) -> None:
    remember(real, CAPITAL)
    page = opens(real)
    page.set_viewport_size({"width": 390, "height": 780})
    ask(page)
    page.locator('#why [data-ready="yes"]').wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("link", name="Running state").click()
    page.locator(".card").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
