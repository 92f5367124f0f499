"""The leaderboard's page in a real browser without a network: filtered, sorted, another device chosen, a value read."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_leaderboard import measurement
from test_system_page import CHROMIUM

from pocketzoo import Architecture
from pocketzoo.leaderboards import records
from pocketzoo.leaderboards.build import build

pytestmark = pytest.mark.system

MODELS = {"mobilenet_v2": 9.25, "mobilenet_v3_large": 12.5, "mobilenet_v1_x0_25": 2.5, "resnet18": 31.0}
PROCESSOR = "Test <i>CPU</i> & more"


class Browser:
    """Chromium's own protocol over a pair of pipes: a message is JSON that ends in a zero byte."""

    def __init__(self, profile: Path) -> None:
        theirs_in, self.out = os.pipe()
        self.inp, theirs_out = os.pipe()
        flags = [flag for flag in CHROMIUM[1:] if not flag.startswith("--virtual-time-budget")]
        # The browser reads descriptor 3 and writes descriptor 4.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        program = [
            "bash",
            "-c",
            shell,
            "-",
            CHROMIUM[0],
            *flags,
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ]
        with (profile.parent / "chromium.log").open("w") as log:
            self.process = subprocess.Popen(program, pass_fds=(theirs_in, theirs_out), stderr=log, stdout=log)
        os.close(theirs_in)
        os.close(theirs_out)
        self.number, self.buffer, self.session, self.events = 0, b"", None, list[dict[str, Any]]()

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            read = os.read(self.inp, 1 << 16)
            assert read, "the browser has gone"
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, page: Path) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Network.enable")
        self.call("Page.enable")
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def read(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        place = self.read(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const b = e.getBoundingClientRect();"
            f"return [b.x + b.width / 2, b.y + b.height / 2] }})(document.querySelector({json.dumps(selector)}))"
        )
        at = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def choose(self, selector: str, words: str) -> None:
        """An entry of a list by its arrow keys; typing its name would be forgotten between slow letters."""
        chosen = f"document.querySelector({json.dumps(selector)})"
        self.read(f"{chosen}.focus()")
        wanted = self.read(f"[...{chosen}.options].findIndex(o => o.label.startsWith({json.dumps(words)}))")
        assert wanted >= 0, words
        steps = wanted - self.read(f"{chosen}.selectedIndex")
        key, code = ("ArrowDown", 40) if steps > 0 else ("ArrowUp", 38)
        for _ in range(abs(steps)):
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def column(self, key: str) -> list[str]:
        found: list[str] = self.read(
            f"[...document.querySelectorAll('tbody td[data-key={key}]')].map(e => e.textContent)"
        )
        return found

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(timeout=30)
        os.close(self.out)
        os.close(self.inp)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leaderboard")
    held = [measurement(name, ms, processor=PROCESSOR) for name, ms in MODELS.items()]
    held.append(measurement("<b>bold</b>", 3.0, arch=Architecture.of("lenet5"), architecture=None, processor=PROCESSOR))
    records.add([m.to_dict() for m in held], folder / "records")
    return build(folder / "out", [folder / "records"])[-1]


@pytest.fixture
def browser(page: Path, tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path / "profile")
    opened.open(page)
    yield opened
    opened.close()


def test_the_page_is_filtered_sorted_and_read(browser: Browser) -> None:
    assert browser.column("top1_percent") == sorted(browser.column("top1_percent"), key=by_number, reverse=True)
    browser.type("#text", "mobilenet_v")
    names = browser.column("label")
    assert names
    assert all(name.startswith("mobilenet_v") for name in names)

    browser.click("th[data-key=latency_ms] button")
    assert browser.column("label")[:3] == ["mobilenet_v1_x0_25", "mobilenet_v2", "mobilenet_v3_large"]
    assert browser.column("latency_ms")[:4] == ["2.50", "9.25", "12.5", ""]
    browser.click("th[data-key=latency_ms] button")
    assert browser.column("latency_ms")[:4] == ["12.5", "9.25", "2.50", ""], "missing cells are last either way"
    assert browser.read("document.querySelector('th[data-key=latency_ms]').ariaSort") == "descending"

    browser.type("input[data-key=macs]", "300")
    assert browser.column("label")[:2] == ["mobilenet_v3_large", "mobilenet_v1_x0_25"]
    cell = "tbody tr td[data-key=latency_ms]"
    says = f"measured on {PROCESSOR}, onnxruntime (onnxruntime 1.99), 1 thread, 2031-05-06, 17 rounds, within 1.0 %"
    assert browser.read(f"document.querySelector('{cell}').title") == says
    browser.click(cell)
    assert browser.read("document.querySelector('#source').textContent") == (
        f"mobilenet_v3_large, latency, ms: 12.5, {says}"
    )
    browser.press("ArrowRight")
    assert "MACs, M: 217, counted from its operators" in browser.read("document.querySelector('#source').textContent")
    accuracy = browser.read("document.querySelector('tbody td[data-key=top1_percent]').title")
    assert accuracy.startswith("published: torchvision 0.28 weights IMAGENET1K_V2")
    assert "also 75.2 (published: arXiv:1905.02244v5 Table 3)" in accuracy


def test_another_device_brings_its_latencies_and_its_plot(browser: Browser) -> None:
    browser.type("#text", "mobilenet_v2")
    before = browser.read(POINTS.format("latency"))
    assert before == 1  # measured
    browser.choose("#place", "pixel1")
    assert browser.read("document.querySelector('#place').selectedOptions[0].label") == "pixel1, tflite"
    latencies = dict(zip(browser.column("label"), browser.column("latency_ms"), strict=True))
    assert latencies["mobilenet_v2, resolution 160"] == "40.2"
    assert latencies["mobilenet_v2_x0_35"].startswith("≈ ")
    marked = browser.read("[...document.querySelectorAll('td.predicted')].map(e => e.title.slice(0, 20))")
    assert marked
    assert set(marked) == {"predicted for pixel1"}
    shown = len([value for value in browser.column("latency_ms") if value])
    assert browser.read(POINTS.format("latency")) == shown > 20
    assert "pixel1, tflite" in browser.read("document.querySelector('#plot-latency .gtitle').textContent")


POINTS = "document.querySelectorAll('#plot-{} .point').length"


def test_plots_have_a_front_and_other_data_sets_their_networks(browser: Browser) -> None:
    for name in ("macs", "params", "size"):
        assert browser.read(POINTS.format(name)) > 100
        assert browser.read(f"document.querySelectorAll('#plot-{name} .js-line').length") == 1
    browser.choose("#dataset", "cifar100")
    assert browser.read("document.querySelector('#dataset').value") == "cifar100"
    best = browser.read("document.querySelector('tbody td[data-key=top1_percent]').title")
    assert best == "published: README of szagoruyko/wide-residual-networks"


def test_records_cannot_write_into_the_page_nor_the_page_reach_a_network(browser: Browser) -> None:
    browser.type("#text", "bold")
    assert browser.column("label") == ["<b>bold</b>"]
    assert browser.read("document.querySelectorAll('main b, main i').length") == 0
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    failed = [e for e in browser.events if e["method"] in ("Runtime.exceptionThrown", "Network.loadingFailed")]
    assert not failed


def by_number(text: str) -> float:
    return float(text or "-inf")
