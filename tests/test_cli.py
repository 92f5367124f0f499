"""The command line: what it prints, what it refuses and how, and a network trained on a folder of images with it."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from pocketzoo.cli import main
from pocketzoo.errors import InvalidWidths
from pocketzoo.graph.channel_graph import trace
from pocketzoo.zoo.create import create_model

CLASSES = {"disc": "red", "square": "blue"}
PER_CLASS = 20
TRAIN = ["train", "lenet5", "--resolution", "16", "--epochs", "3", "--batch-size", "8", "--lr", "0.02"]


def pocketzoo(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="pocketzoo")


def said(*arguments: str | Path) -> str:
    """What a command that works prints; nothing goes to stderr where nobody watches."""
    result = pocketzoo(*arguments)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    """The one line with which a command refuses."""
    result = pocketzoo(*arguments)
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stdout == ""
    return one_line(result.stderr)


def process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pocketzoo", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, **options)


def one_line(text: str) -> str:
    line = text.removesuffix("\n")
    assert line.startswith("pocketzoo: ")
    assert len(line.splitlines()) == 1, text
    return line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(path: Path, name: str, shift: int) -> None:
    image = Image.new("RGB", (18 + shift % 3, 16), "white")
    pencil = ImageDraw.Draw(image)
    shape = pencil.ellipse if name == "disc" else pencil.rectangle
    shape((2 + shift % 4, 2, 11 + shift % 4, 11 + shift % 2), fill=CLASSES[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for name in CLASSES:
        for i in range(PER_CLASS):
            draw(folder / name / f"{i}.png", name, i)
    return folder


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    text = said(*TRAIN, "--data", pictures, "--out", out)
    assert "of the test images" in text
    assert str(out) in text
    return out


# -- what works ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_ends_in_an_example_and_speaks_to_machines(name: str) -> None:
    text = said(name, "--help")
    heading, example = text.rstrip().splitlines()[-2:]
    assert heading.strip() == "Example:"
    assert example.strip().startswith(f"pocketzoo {name} ")
    parts = getattr(main.commands[name], "commands", {})  # of a group, its commands
    assert all("--json" in page for page in ([said(name, part, "--help") for part in parts] or [text]))
    assert any(line.strip().startswith(name) for line in said("--help").splitlines())


def test_list() -> None:
    rows = json.loads(said("list", "lenet*", "--json"))
    assert [row["model"] for row in rows] == ["lenet5", "lenet_300_100"]
    lenet5 = rows[0]
    assert (lenet5["params"], lenet5["macs"]) == (431_080, 2_293_000)  # Caffe's LeNet, by hand: 25,570 + 405,510
    table = said("list", "lenet*").splitlines()
    assert len(table) == 3
    assert table[1].split()[0] == "lenet5"
    assert table[1].split()[-2:] == ["0.431", "2.29"]


def test_profile() -> None:
    arguments = ["profile", "lenet5", "--num-classes", "7"]
    report = json.loads(said(*arguments, "--json"))
    assert report["costs"]["macs"] == 2_293_000 - 3 * 500
    assert report["input_shape"] == [1, 1, 28, 28]
    assert sum(row["macs"] for row in report["layers"]) == report["costs"]["macs"]
    by_kind, by_layer = said(*arguments), said(*arguments, "--by", "layer")
    assert "linear" in by_kind
    assert "conv2" not in by_kind
    assert "conv2" in by_layer
    assert json.loads(said("profile", "lenet5", "--batch", "3", "--json"))["costs"]["macs"] == 3 * 2_293_000


@pytest.mark.parametrize("tool", ["fvcore", "thop", "ptflops"])
def test_profile_as_another_tool(tool: str) -> None:
    report = json.loads(said("profile", "lenet5", "--as", tool, "--json"))
    assert (report["tool"], report["macs"]) == (tool, 2_293_000)
    assert sum(row["tool"] for row in report["by_kind"]) == report["total"]
    assert tool in said("profile", "lenet5", "--as", tool)


def test_profile_check() -> None:
    found = json.loads(said("profile", "lenet5", "--check", "--json"))
    assert found == {
        "macs": 2_293_000, "flop_counter": 2_293_000, "conv_and_linear": 2_293_000, "fvcore": 2_293_000,
        "agrees": True,
    }  # fmt: skip
    assert "agrees to the unit: 2,293,000 MACs" in said("profile", "lenet5", "--check")


def test_a_network_from_a_folder_of_images(trained: Path, pictures: Path, tmp_path: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    score = json.loads(said("evaluate", trained, "--data", pictures, "--json"))
    assert score["accuracy"] == result["accuracy"]["test"] > 0.9
    assert score["images"] == len(CLASSES) * PER_CLASS // 5
    assert f"{score['accuracy']:.2%} of {score['images']} test images" in said("evaluate", trained, "--data", pictures)

    images = []
    for name, shift in (("square", 30), ("disc", 31), ("square", 33)):
        images.append(tmp_path / f"{name}{shift}.png")
        draw(images[-1], name, shift)
    by_torch, by_onnx = (
        json.loads(said("predict", trained, *images, "--runtime", runtime, "--json")) for runtime in ("torch", "onnx")
    )
    assert [(p["path"], p["label"]) for p in by_torch] == [
        (str(path), name) for path, name in zip(images, ("square", "disc", "square"), strict=True)
    ]
    for ours, theirs in zip(by_torch, by_onnx, strict=True):
        assert (theirs["path"], theirs["label"]) == (ours["path"], ours["label"])
        assert theirs["probability"] == pytest.approx(ours["probability"], abs=1e-5)
    line = said("predict", trained, images[0]).splitlines()
    assert line == [f"{images[0]}\tsquare\t{by_torch[0]['probability']:.1%}"]


def test_a_finished_training_is_read_again(trained: Path, pictures: Path) -> None:
    before = files(trained)
    text = said(*TRAIN, "--data", pictures, "--out", trained, "--json")
    assert json.loads(text) == json.loads((trained / "result.json").read_text())
    assert files(trained) == before


def test_best_json_trains_the_same_network_again(trained: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "narrow.json").write_text((trained / "best.json").read_text())
    arguments: list[str | Path] = ["--epochs", "1", "--data", pictures, "--out", tmp_path / "out", "--json"]
    result = json.loads(said("train", tmp_path / "narrow.json", *arguments))
    assert result["architecture"] == json.loads((trained / "result.json").read_text())["architecture"]


# -- what is refused -----------------------------------------------------------------------------------------------

UNLIMITED = ["search", "lenet5", "--data", "digits"]
SEARCH = [*UNLIMITED, "--macs", "100k"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profile", "mobilenetv2"], "did you mean mobilenet_v2?"),
        (["profile", "nowhere:net"], "'nowhere:net' cannot be imported"),
        (["profile", "lenet5", "--as", "fvcroe"], "fvcore"),
        (["profile", "lenet5", "--num-classes", "-1"], "-1 is not in the range"),
        (["profile", "lenet5", "--resolution", "0"], "0 is not in the range"),
        (["list", "lenet55"], "did you mean lenet5?"),
        (["lst"], "No such command 'lst'"),
        (["train"], "Missing argument 'MODEL'"),
        (["evaluate", "nowhere", "--data", "digits"], "there is no nowhere"),
        (["predict", "nowhere", "x.png"], "there is no nowhere"),
        (["predict", "nowhere", "x.png", "--runtime", "onnx"], "nowhere"),
        (["train", "nowhere.json", "--data", "digits", "--out", "{out}"], "nowhere.json cannot be read"),
        (["train", "lenet55", "--data", "digits", "--out", "{out}"], "did you mean lenet5?"),
        (["train", "lenet5", "--data", "digit", "--out", "{out}"], "did you mean digits?"),
        (["train", "lenet5", "--data", "digits", "--epochs", "0", "--out", "{out}"], "0 is not in the range"),
        (["train", "lenet5", "--data", "digits", "--lr", "nan", "--out", "{out}"], "lr is nan"),
        ([*UNLIMITED, "--macs", "2Q", "--out", "{out}"], "no unit 'Q'"),
        ([*UNLIMITED, "--macs", "-2M", "--out", "{out}"], "above 0"),
        ([*SEARCH, "--macs", "2M", "--out", "{out}"], "--macs is given 2 times (100k, 2M)"),
        ([*SEARCH, "--size", "2M", "--out", "{out}"], "no unit 'M'"),
        ([*UNLIMITED, "--macs", "10", "--out", "{out}"], "its narrowest network costs macs="),
        ([*SEARCH, "--params", "10", "--out", "{out}"], "its narrowest network costs"),
        ([*SEARCH, "--budgets", "100k,10", "--out", "{out}"], "its narrowest network costs macs="),
        ([*SEARCH, "--latency", "8ms", "--out", "{out}"], "pocketzoo calibrate --device cpu makes one"),
        ([*SEARCH, "--latency", "8ms", "--device", "pixel11", "--out", "{out}"], "did you mean pixel1?"),
        ([*UNLIMITED, "--macs", "1M", "--device", "cpu", "--out", "{out}"], "for a latency"),
        ([*SEARCH, "--data", "digit", "--out", "{out}"], "did you mean digits?"),
        ([*SEARCH, "--resolutions", "8,x", "--out", "{out}"], "'x' is no number of pixels"),
        ([*SEARCH, "--trials", "0", "--out", "{out}"], "0 is not in the range"),
        ([*SEARCH, "--weights", "nowhere", "--out", "{out}"], "there is no nowhere"),
        (["search", "lenet5", "--data", "digits", "--out", "{out}"], "--macs 2M"),
    ],
)
def test_wrong_words(arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_HOME", str(tmp_path / "home"))  # without a calibration
    line = refused(*(argument.format(out=tmp_path / "out") for argument in arguments))
    assert says in line
    assert not (tmp_path / "out").exists()


def test_the_least_a_budget_can_be_is_reached(tmp_path: Path) -> None:
    """What the refusal names as the least is enough."""
    line = refused(*UNLIMITED, "--macs", "10", "--out", tmp_path / "out")
    least = line.partition("macs=10 ")[2].partition("macs=")[2].partition(";")[0]
    text = said(*UNLIMITED, "--macs", least, "--trials", "1", "--epochs", "1", "--out", tmp_path / "out")
    assert "of the test images" in text


def test_widths_that_break_a_constraint(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """A grouped convolution's channels come in groups: 3 of them cannot be 17 channels."""
    model = create_model("shufflenet_v1_g3_x1_0", num_classes=10, resolution=32)
    graph = trace(model, (1, 3, 32, 32))
    name = next(name for name, step in graph.steps.items() if step > 1)
    with pytest.raises(InvalidWidths, match=name):
        graph.price({name: graph.groups[name] + 1})
    record = json.loads((trained / "best.json").read_text())
    for widths, says in (({"conv1": 0}, "conv1"), ({"conv9": 4}, "conv9"), ({"conv1": -3}, "conv1")):
        (tmp_path / "wrong.json").write_text(json.dumps({**record, "widths": widths}))
        assert says in refused("train", tmp_path / "wrong.json", "--data", pictures, "--out", tmp_path / "out")


def test_an_unknown_family_in_a_record(trained: Path, pictures: Path, tmp_path: Path) -> None:
    text = (trained / "best.json").read_text()
    (tmp_path / "other.json").write_text(text.replace('"lenet5"', '"lenet55"'))
    line = refused("train", tmp_path / "other.json", "--data", pictures, "--out", tmp_path / "out")
    assert "did you mean lenet5?" in line
    (tmp_path / "broken.json").write_text(text[:40])
    assert "broken.json" in refused("train", tmp_path / "broken.json", "--data", pictures, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "a record that cannot be built leaves no folder behind"


def test_corrupt_data(pictures: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.parquet").write_text("not a table")
    (tmp_path / "torn.png").write_bytes((pictures / "disc" / "1.png").read_bytes()[:60])
    spoilt = Path(shutil.copytree(pictures, tmp_path / "spoilt"))
    shutil.copy(tmp_path / "torn.png", spoilt / "disc" / "7.png")
    out = tmp_path / "out"
    assert "train.parquet" in refused("train", "lenet5", "--data", tmp_path / "tables", "--out", out)
    assert "7.png" in refused("train", "lenet5", "--data", spoilt, "--out", out)
    for runtime in ("torch", "onnx"):
        images = [pictures / "disc" / "1.png", tmp_path / "torn.png"]
        assert "torn.png" in refused("predict", trained, *images, "--runtime", runtime)
    assert "10 classes" in refused("evaluate", trained, "--data", "digits")
    assert not out.exists()


def test_damaged_runs(trained: Path, pictures: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(trained, tmp_path / "damaged"))
    for name in ("best.safetensors", "best.onnx"):
        content = (damaged / name).read_bytes()
        (damaged / name).write_bytes(content[: len(content) // 2])
    before = files(damaged)
    image = pictures / "disc" / "1.png"
    assert "best.safetensors" in refused("evaluate", damaged, "--data", pictures)
    assert "best.safetensors" in refused("predict", damaged, image)
    assert "best.onnx" in refused("predict", damaged, image, "--runtime", "onnx")
    assert files(damaged) == before


def test_a_folder_with_something_else_in_it(trained: Path, pictures: Path) -> None:
    """Another training, another kind of run, a search over a training: none of it is touched."""
    before = files(trained.parent)
    other: list[str | Path] = ["--data", pictures, "--out", trained]
    assert "holds another run" in refused(*TRAIN, *other, "--epochs", "4")
    assert "holds another run" in refused("train", "lenet_300_100", *other)
    assert "holds another run" in refused(*SEARCH, "--trials", "1", "--out", trained)
    assert "first" in refused(*TRAIN, "--data", pictures, "--out", trained.parent)
    assert files(trained.parent) == before


def in_the_way(folder: Path) -> Path:
    (folder / "file").write_text("mine")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return in_the_way(folder) / "out"


def read_only(folder: Path) -> Path:
    (folder / "closed").mkdir(mode=0o555)
    return folder / "closed" / "out"


def below_proc(folder: Path) -> Path:
    return Path("/proc/out")


ROOT_WRITES = pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
NO_PROC = pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that cannot be written")


@pytest.mark.parametrize(
    "place",
    [
        in_the_way,
        below_a_file,
        pytest.param(read_only, marks=ROOT_WRITES),
        pytest.param(below_proc, marks=NO_PROC),
    ],
)
def test_folders_that_cannot_be_written(place: Callable[[Path], Path], pictures: Path, tmp_path: Path) -> None:
    out = place(tmp_path)
    before = files(tmp_path)
    for arguments in ([*TRAIN, "--data", pictures], [*SEARCH, "--trials", "1"]):
        assert str(out) in refused(*arguments, "--out", out)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [*TRAIN, "--data", "{pictures}"],
        ["search", "lenet5", "--data", "digits", "--macs", "3M", "--trials", "1", "--epochs", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_disk_that_fills_up(arguments: list[str], pictures: Path, tmp_path: Path) -> None:
    """No file may grow beyond 300 kB: the record and the study fit, weights (1.7 MB) do not."""
    out = tmp_path / "out"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    given = [argument.format(pictures=pictures) for argument in arguments]
    ended = process(*given, "--out", out, preexec_fn=limit, stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert "too large" in one_line(ended.stderr)
    assert not [path for path in out.rglob("*") if path.suffix in (".safetensors", ".onnx")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written() -> None:
    with Path("/dev/full").open("w") as full:
        ended = process("list", "--json", stdout=full)
    assert ended.returncode == 2
    assert "No space left" in one_line(ended.stderr)


def test_a_loss_that_is_no_number(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refused(*TRAIN, "--lr", "1e30", "--data", pictures, "--out", out)
    assert "the loss became" in line
    assert not (out / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profile", "mobilenetv2"], "did you mean mobilenet_v2?"),
        ([*UNLIMITED, "--macs", "10", "--out", "{out}"], "narrowest network"),
    ],
)
def test_a_real_process_says_one_line_too(arguments: list[str], says: str, tmp_path: Path) -> None:
    """Warnings of the libraries below would show here."""
    ended = process(*(a.format(out=tmp_path / "out") for a in arguments), stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert says in one_line(ended.stderr)
    assert not (tmp_path / "out").exists()


def test_a_real_process_predicts(trained: Path, pictures: Path) -> None:
    ended = process("predict", trained, pictures / "disc" / "3.png", stdout=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split("\t")[1] == "disc"


def test_ctrl_c(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketzoo.training.run.fit", interrupted)
    result = pocketzoo(*TRAIN, "--data", pictures, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "the same command goes on" in one_line(result.stderr)
