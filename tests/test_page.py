"""The page in a real browser: words stream, pictures appear and are edited, answers are stopped, and a reload loses nothing."""

import json
import os
import shutil

import pytest
import served
from served import KEY, wait_for
import tiny

from orthus_jax.serving import stream

pytestmark = pytest.mark.slow
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def server():
  with pytest.MonkeyPatch.context() as patch, served.over_http(tiny.lively_model(), seconds=120.0) as server:
    patch.setattr(stream, "_QUIET", 0.002)  # comments between an answer's pieces, which the page reads over
    yield server


@pytest.fixture(scope="module")
def browser():
  if not BROWSER and "ORTHUS_REQUIRE_BROWSER" not in os.environ:
    pytest.skip("needs chromium")
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # as root it starts no other way
    yield browser
    browser.close()


@pytest.fixture
def page(browser, server):
  """A page that has been given the key, and whose `asked` are the bodies that it sent; none of its scripts may fail."""
  context = browser.new_context(viewport={"width": 1100, "height": 800}, color_scheme="light")
  page = context.new_page()
  page.set_default_timeout(60_000)
  errors, page.asked = [], []
  page.on("pageerror", lambda e: errors.append(str(e)))
  page.on("console", lambda m: errors.append(m.text) if m.type == "error" and "Failed to load" not in m.text else None)
  page.on("request", lambda r: page.asked.append(json.loads(r.post_data)) if "completions" in r.url else None)
  page.goto(server.url)
  page.fill("#key input[type=password]", "wrong")
  page.keyboard.press("Enter")
  wait_for(lambda: not page.input_value("#key input[type=password]") and page.is_visible("#key"))  # it asks again
  page.fill("#key input[type=password]", KEY)
  page.keyboard.press("Enter")
  page.wait_for_selector("body[data-ready]")
  yield page
  context.close()
  assert not errors, errors


def ask(page, text, respond, *, wait=True):
  page.click(f"#respond span:has-text('{respond}')")
  page.fill("#text", text)
  page.press("#text", "Enter")
  if wait:
    page.wait_for_selector("#send:has-text('Send')")


def option(page, name, value):
  page.eval_on_selector("#options", "o => (o.open = true)")
  page.fill(f"#fields [name={name}]", value)


def test_words_stream_and_pictures_appear_and_are_edited(page):
  page.evaluate(
      """() => {
        window.seen = new Set();
        new MutationObserver(() => {
          const words = document.querySelector(".answer p")?.textContent;
          if (words) window.seen.add(words);
          if (document.querySelector("figure.making img")) window.sharpened = document.querySelector("progress").max;
        }).observe(document.getElementById("log"), { childList: true, subtree: true, characterData: true, attributes: true });
      }"""
  )
  assert page.locator("#fields [name=image_temperature]").count() == 1  # which its head has
  assert page.locator("#fields [name=image_top_k]").count() == 0
  option(page, "max_new_tokens", "9")
  option(page, "seed", "5")
  ask(page, "what is it?", "Words")
  assert page.evaluate("window.seen.size") > 1 and page.asked[0]["seed"] == 5 and page.asked[0]["respond"] == "text"
  words = page.inner_text(".answer p")
  page.click(".answer footer button:has-text('Again')")
  page.wait_for_selector("text=2 / 2")
  page.wait_for_selector("#send:has-text('Send')")
  assert page.inner_text(".answer p") == words and page.asked[1]["seed"] == 5  # a seed that is chosen gives the same
  page.fill("#fields [name=max_new_tokens]", "")
  ask(page, "draw a red box", "Picture")
  assert page.evaluate("window.sharpened") == 16
  assert page.evaluate("document.querySelector('.answer:last-child img').naturalWidth") == 8
  drawn = page.get_attribute(".answer:last-child img", "src")
  page.click(".answer:last-child figcaption >> text=Edit")
  assert page.is_checked("#respond [value=image]")
  page.fill("#text", "make it blue")
  page.keyboard.press("Enter")
  page.wait_for_selector("article >> nth=5 >> figcaption")
  last = page.asked[-1]["messages"]
  assert last[-1]["content"][0]["image_url"]["url"] == drawn and last[-1]["content"][1]["text"] == "make it blue"
  assert [m["role"] for m in last] == ["user", "assistant", "user", "assistant", "user"]  # what was said before goes along
  assert last[3]["parts"][-1]["image_url"]["url"] == drawn


def test_an_answer_is_stopped_and_a_reload_shows_all_that_came(page, server, monkeypatch):
  ask(page, "draw a red box", "Picture")
  drawn = page.get_attribute(".answer img", "src")
  for on in served.held(monkeypatch):
    ask(page, "two", "Words", wait=False)
    wait_for(lambda: server.engine.load.waiting or server.engine.load.rows)
    page.press("#text", "Escape")
    page.wait_for_selector("footer >> text=stopped")
    wait_for(lambda: server.engine._given_up)
    on.set()
  wait_for(lambda: server.engine.load.rows == server.engine.load.waiting == 0)
  page.click("#new")
  ask(page, "another", "Words", wait=False)
  page.wait_for_selector("#send:has-text('Send')")
  assert page.locator("#conversations button").all_inner_texts() == ["another", "draw a red box"]
  page.reload()
  page.wait_for_selector("body[data-ready]")  # the key is kept for the tab
  assert page.inner_text("#title") == "another"
  page.click("#conversations >> text=draw a red box")
  assert page.get_attribute(".answer img", "src") == drawn and page.locator("footer >> text=stopped").count() == 1
  page.click("#remove")
  assert page.locator("#conversations button").all_inner_texts() == ["another"]
  page.click("#toast >> text=Undo")
  assert page.get_attribute(".answer img", "src") == drawn


def test_a_reload_keeps_what_had_come_of_an_answer_and_nothing_of_what_was_deleted(page, server, monkeypatch):
  for on in served.held(monkeypatch):
    option(page, "max_new_tokens", "100")
    option(page, "seed", "5")
    ask(page, "one", "Words", wait=False)
    wait_for(lambda: server.engine.load.waiting or server.engine.load.rows)
    wait_for(lambda: on.set() or on.clear() or page.locator(".answer p").count())  # a step or a few, until a word comes
    words = page.inner_text(".answer p")
    assert page.inner_text("#send") == "Stop"
    page.reload()
    page.wait_for_selector("footer >> text=stopped")
    assert page.inner_text(".answer p").startswith(words)
    page.click("footer >> text=Again")
    page.wait_for_selector("#send:has-text('Stop')")
    page.click("#remove")
    page.wait_for_selector("#said:has-text('No answer')", state="attached")  # it has ended, after the conversation
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#conversations button").all_inner_texts() == ["New conversation"]


def test_a_message_waits_for_the_server_and_an_option_sends_none(page):
  page.route("**/health", lambda route: route.fulfill(status=503))
  page.reload()
  page.wait_for_selector("#banner:has-text('starting')")
  page.fill("#text", "what?")
  page.press("#text", "Enter")
  assert page.is_disabled("#send") and page.is_disabled("#new") and not page.is_visible("#remove")
  page.unroute("**/health")
  page.wait_for_selector("body[data-ready]")
  option(page, "seed", "5")
  page.press("#fields [name=seed]", "Enter")
  page.press("[name=respond][value=text]", "Enter")
  assert page.input_value("#text") == "what?" and not page.asked and not page.locator(".turn").count()
  option(page, "seed", "1.5")
  page.eval_on_selector("#options", "options => options.open = false")
  page.click("#send")
  assert page.get_attribute("#options", "open") is not None and not page.asked  # what is wrong can be seen
  option(page, "seed", "5")
  page.click("#send")
  page.wait_for_selector(".answer footer")
  assert page.asked[0]["messages"][0]["content"][0]["text"] == "what?"


def test_what_the_server_refuses_is_shown_and_can_be_asked_again(page):
  option(page, "top_p", "7")
  ask(page, "what?", "Words")
  assert "top_p" in page.inner_text(".answer .error")
  page.click("#defaults")
  page.click("footer >> text=Again")
  page.wait_for_selector("text=2 / 2")
  page.wait_for_selector("#send:has-text('Send')")
  assert page.locator(".error").count() == 0


def test_a_picture_is_added_from_a_file_and_the_page_fits_a_phone(page, tmp_path):
  import PIL.Image

  PIL.Image.new("RGB", (4000, 10), (200, 30, 30)).save(tmp_path / "wide.png")
  (tmp_path / "no.png").write_bytes(b"no picture")
  page.set_viewport_size({"width": 390, "height": 800})
  page.set_input_files("#file", [tmp_path / "wide.png", tmp_path / "no.png"])
  page.wait_for_selector("#attached img")
  page.wait_for_selector("#toast >> text=isn't a picture")
  ask(page, "what is it?", "Words")
  size = "s => new Promise(r => { const i = new Image(); i.onload = () => r([i.width, i.height]); i.src = s; })"
  assert page.evaluate(size, page.asked[0]["messages"][0]["content"][0]["image_url"]["url"]) == [2048, 5]
  assert page.evaluate("document.documentElement.scrollWidth") == 390
  assert not page.is_visible("#new")
  for close in (lambda: page.keyboard.press("Escape"), lambda: page.mouse.click(380, 400)):
    page.click("#menu[aria-expanded=false]")
    assert page.get_attribute("#menu", "aria-expanded") == "true"
    close()
    page.wait_for_selector("#side", state="hidden")
  page.click("#menu[aria-expanded=false]")
  wait_for(lambda: page.evaluate("document.getElementById('side').getBoundingClientRect().left") == 0)
  dropped = """given => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(...given);
    const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
    return !document.querySelector("#text").dispatchEvent(drop);
  }"""
  assert not page.evaluate(dropped, ["some words", "text/plain"])  # they go into the message
  assert page.evaluate(dropped.replace("...given", "new File([], 'a.txt')"))
  assert page.evaluate(dropped.replace("#text", "main"), ["http://localhost/", "text/uri-list"])  # it would be gone to
  light = page.evaluate("getComputedStyle(document.body).backgroundColor")
  page.click("#theme")
  page.click("#theme")
  assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
