"""A search's page as a browser shows it, without a network."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pocketzoo as pz
from pocketzoo.training.recipe import Recipe

pytestmark = pytest.mark.system

TRIALS, WIDTH, HEIGHT = 4, 1280, 2600
PLOTS = ["Optimisation history", "Accuracy against MACs", "Accuracy against parameters", "Parallel coordinates"]
# A proxy where nobody listens: whatever the page asked of a network would fail, and be said on the console.
CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr",
    "--enable-unsafe-swiftshader", "--force-device-scale-factor=1", "--hide-scrollbars",
    f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=20000",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> pz.Study:
    out = tmp_path_factory.mktemp("search") / "run"
    recipe = Recipe(epochs=1)
    budget = pz.Budget(macs="30k")
    return pz.run_search("lenet5", "digits", budget, TRIALS, out, recipe=recipe, trial_recipe=recipe)


def browse(page: Path, profile: Path, *what: str) -> subprocess.CompletedProcess[str]:
    program = [*CHROMIUM, f"--user-data-dir={profile}", *what, page.as_uri()]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=True)


def test_the_plots_are_drawn_from_the_trials(study: pz.Study, tmp_path: Path) -> None:
    seen = browse(study.out / "index.html", tmp_path, "--dump-dom")
    sections = dict(re.findall(r"<h2>(.*?)</h2>(.*?)(?=<h2>|\Z)", seen.stdout, flags=re.DOTALL))
    assert list(sections) == PLOTS
    assert not re.search(r"CONSOLE.*(Uncaught|ERR_|Failed to load|Refused)", seen.stderr), seen.stderr

    trials = study.trials
    points = {title: len(re.findall(r'<path class="point"', drawn)) for title, drawn in sections.items()}
    complete = int((trials["state"] == "complete").sum())
    assert points == dict(zip(PLOTS, [trials["value"].count(), complete, complete, 0], strict=True))
    assert re.search(r'<path class="js-line"[^>]* d="M[^"]*H', sections[PLOTS[0]])  # steps of the best so far
    for title in PLOTS[:3]:
        assert "validation accuracy" in sections[title]
    lines = sections[PLOTS[3]]
    assert lines.count("gl-canvas-context") == 1
    for axis in ("kernel", "conv1", "conv2", "hidden", "accuracy"):
        assert re.search(rf'class="axis-title"[^>]*>{axis}<', lines), axis
    assert "cloud" not in "".join(re.findall(r'data-title="[^"]*"', seen.stdout)).lower()


def test_the_page_is_not_blank(study: pz.Study, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    browse(study.out / "index.html", tmp_path / "profile", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("HSV"))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    coloured = (pixels[..., 1] > 80).sum(axis=1)  # neither paper nor ink
    quarters = [int(part.sum()) for part in np.array_split(coloured, 4)]
    assert min(quarters) > 200, quarters  # every plot has its own
