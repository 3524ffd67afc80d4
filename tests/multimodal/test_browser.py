"""The page in a real browser: a headless Chromium uses every tab once, without another address being asked."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from multimodal_jax.serve.tab import Number, Text
from tests.multimodal.test_tabs import BY_TITLE, FILLED, bomb

pytestmark = pytest.mark.slow  # training, compiling and two starts of gradio: minutes
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parent.parent.parent
SCREENSHOTS = ROOT / "build" / "page"  # of every tab after its use, to look at
# The server, which prints every address that it connects to or looks up.
SERVER = """
import socket, sys
def told(name):
    function = getattr(socket.socket, name)
    def connect(self, address):
        print("connects to", address[0] if isinstance(address, tuple) else "a file", flush=True)
        return function(self, address)
    setattr(socket.socket, name, connect)
told("connect"); told("connect_ex")
look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **options):
    print("looks up", host, flush=True)
    return look_up(host, *rest, **options)
socket.getaddrinfo = getaddrinfo
from multimodal_jax.__main__ import main
sys.exit(main(["serve", "runs", "--port", sys.argv[1]]))
"""
# Text of every element that is seen, with the contrast to the colour behind it (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m };
  const over = (a, b) => a.slice(0, 3).map((x, i) => x * a[3] + b[i] * (1 - a[3]));
  const linear = x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(x => linear(x / 255)); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = e => { const layers = [];
    for (let x = e; x; x = x.parentElement) layers.push(parse(getComputedStyle(x).backgroundColor));
    return layers.reverse().reduce((under, layer) => over(layer, under), [255, 255, 255]) };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.textContent.trim()).join("") || (e.value ?? "");
    const style = getComputedStyle(e);
    if (!text || typeof text !== "string" || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (e.closest("[disabled], .sr-only, script, style") || !e.getClientRects().length) continue;
    const back = behind(e), a = light(over(parse(style.color), back)), b = light(back);
    found.push([text.slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), style.color, back.join()]);
  }
  return found;
}"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, Path]]:
    """Starts `multimodal-jax serve runs` in a folder; yields its address and the file of what it prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "server.log"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)], cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 300
        while "is open until Ctrl-C" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", log
    finally:
        server.terminate()
        server.wait(30)


class Page:
    """The page as a person uses it.

    Attributes:
      requested: addresses that the browser asked for.
      faults: errors in the browser's console.
    """

    def __init__(self, browser, address: str, **options):
        self.page = browser.new_context(viewport={"width": 1200, "height": 900}, **options).new_page()
        self.page.set_default_timeout(120_000)
        self.address, self.requested, self.faults = address, [], []
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        self.page.goto(address)
        self.page.get_by_role("tab", name="Search").wait_for()

    @property
    def outside(self) -> list[str]:
        """Addresses that the browser asked for outside of the server."""
        return [url for url in self.requested if not url.startswith((self.address, "data:", "blob:"))]

    @property
    def tab(self):
        """The open tab."""
        return self.page.get_by_role("tabpanel").filter(visible=True)

    def open(self, title: str) -> None:
        self.page.get_by_role("tab", name=title).click()
        self.tab.get_by_text("The same on the command line").wait_for()

    def upload(self, file: Path) -> None:
        self.tab.locator("input[type=file]").set_input_files(file)
        self.tab.get_by_label("Remove Image").or_(self.tab.get_by_label("Clear")).first.wait_for()

    def take_screenshot(self, title: str) -> None:
        self.page.evaluate("scrollTo(0, 0)")
        time.sleep(1)  # pictures appear
        self.page.screenshot(path=SCREENSHOTS / f"{title}.png", full_page=True)

    def wait(self, role: str = "status", text: str = "") -> str:
        """Waits for the end of a job, or for a status with this text, and returns the status."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            found = self.tab.locator(f".status [role={role}]")
            status = found.first.inner_text() if found.count() else ""
            if status and (text in status if text else "…" not in status and not status.startswith("step ")):
                return status
            time.sleep(0.1)
        raise AssertionError(f"no {role} {text!r}: {self.tab.inner_text()}")


@pytest.fixture(scope="module")
def address_and_log(folder):
    pytest.importorskip("gradio", reason="needs gradio: make test-app")
    pytest.importorskip("playwright", reason="needs playwright: make test-app")
    if CHROMIUM is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    with serving(folder) as address_and_log:
        yield address_and_log


@pytest.fixture(scope="module")
def address(address_and_log) -> str:
    return address_and_log[0]


@pytest.fixture(scope="module")
def browser(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium itself asks its maker for updates; only requests of the page are counted.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_every_tab_works_and_no_other_address_is_asked(browser, address_and_log, folder, tmp_path):
    address, log = address_and_log
    page = Page(browser, address)
    for title, values in FILLED.items():
        page.open(title)
        if "picture" in values:
            page.upload(folder / values["picture"])
        page.tab.get_by_role("button", name="Options").click()
        for name, value in values.items():
            if isinstance(field := BY_TITLE[title].form[name], Text | Number):
                page.tab.get_by_label(field.label).first.fill(str(value))
        page.tab.get_by_role("button", name=BY_TITLE[title].button, exact=True).click()
        page.wait()
        page.take_screenshot(title)
        command = page.tab.locator(".command").locator("input, textarea").first.input_value()
        assert command.split("-jax")[0] in ("clip", "vqgan", "dalle") and "runs/" in command
    # A picture as the command line writes it.
    page.open("Paint")
    page.tab.locator(".gallery img").first.click()
    with page.page.expect_download() as download:
        page.tab.get_by_label("Download").first.click()
    download.value.save_as(tmp_path / "painting.png")
    with Image.open(tmp_path / "painting.png") as image:
        assert json.loads(image.text["vqgan-jax paint"])["prompts"] == [FILLED["Paint"]["prompt"]]
    assert page.outside == [] and page.faults == []
    told = [line.split()[-1] for line in log.read_text().splitlines() if line.startswith(("connects to", "looks up"))]
    assert set(told) <= {"127.0.0.1", "localhost", "file", "None", "::1"}


def test_the_keyboard_is_enough(browser, address):
    page = Page(browser, address)
    page.page.keyboard.press("Tab")
    for _ in range(20):
        if page.page.evaluate("document.activeElement.getAttribute('role')") == "tab":
            break
        page.page.keyboard.press("Tab")
    for _ in range(20):
        if page.page.evaluate("document.activeElement.tagName") in ("TEXTAREA", "INPUT"):
            break
        page.page.keyboard.press("Tab")
    page.page.keyboard.type("picture 2")
    page.page.keyboard.press("Enter")
    assert "of 8 pictures" in page.wait()
    # In a narrow window all pictures are seen.
    page.page.set_viewport_size({"width": 800, "height": 900})
    assert page.tab.locator(".grid-wrap").evaluate("e => e.scrollWidth <= e.clientWidth")
    look = "e => { const s = getComputedStyle(e); return s.outline + s.boxShadow + s.borderColor }"
    words = page.tab.get_by_label("Words").first
    focused = words.evaluate(look)
    page.page.keyboard.press("Tab")
    time.sleep(1)
    assert words.evaluate(look) != focused  # the focus is seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme, browser, address):
    page = Page(browser, address, color_scheme=scheme)
    low = []
    for title in FILLED:
        page.open(title)
        page.tab.get_by_role("button", name="Options").click()
        time.sleep(1)  # colours fade in
        found = page.page.evaluate(CONTRAST)
        assert len(found) > 10
        low += [row for row in found if row[1] < 4.5]
    assert low == []
    assert page.page.evaluate("document.documentElement.lang") == "en"


def test_a_painting_is_watched_and_stopped(browser, address):
    page = Page(browser, address)
    page.open("Paint")
    page.tab.get_by_label("Prompt").first.fill("picture 1")
    page.tab.get_by_label("Steps").first.fill("2000")
    for _ in range(4):
        page.tab.get_by_role("button", name="Paint", exact=True).click()
        page.wait(text="step ")
        page.tab.locator(".gallery img").first.wait_for()
        page.tab.get_by_role("button", name="Stop").click()
        assert page.wait(text="stopped") == "stopped"
        time.sleep(0.5)
        assert page.wait() == "stopped"  # what the job had shown before comes no later
    page.open("Search")  # the device is free
    page.tab.get_by_label("Words").first.fill("picture 2")
    page.tab.get_by_role("button", name="Search", exact=True).click()
    assert "of 8 pictures" in page.wait()


def test_strangers_get_a_sentence(browser, address, tmp_path):
    page = Page(browser, address)
    page.open("Reconstruct")
    for name, data, sentence in (
        ("bomb.png", bomb(10_000, 10_000), "at most 50,000,000 are decoded"),
        ("notes.png", b"no picture", "not a readable image"),
    ):
        (tmp_path / name).write_bytes(data)
        page.tab.locator("input[type=file]").set_input_files(tmp_path / name)
        time.sleep(2)
        page.tab.get_by_role("button", name="Reconstruct", exact=True).click()
        assert sentence in page.wait("alert", sentence)
        page.page.reload()
        page.open("Reconstruct")
    # What no browser sends: a file of the server as an upload.
    config = json.load(urllib.request.urlopen(f"{address}/config"))
    index = next(x["id"] for x in config["dependencies"] if len(x["inputs"]) == 2 and x["targets"][0][1] == "click")
    file = {"path": "/etc/hostname", "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": index, "session_hash": "stranger", "data": [file, "runs/vqgan"]}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).read()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=stranger") as events:
        text = events.read().decode()
    assert '"success": false' in text or '"success":false' in text
    assert "not a readable image" not in text  # it was not even opened
