"""The leaderboard: accuracies on the right networks, a store that keeps records, tables and a page that say their
sources."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import torchvision_on_cpu  # noqa: F401 - before torchvision
from pocketzoo import Architecture, Recipe
from pocketzoo.commands.choose import leaderboard_command
from pocketzoo.errors import InvalidRun, PocketzooError
from pocketzoo.leaderboards import networks, phones, records
from pocketzoo.leaderboards.accuracy import published
from pocketzoo.leaderboards.build import CSV, MARKDOWN, PAGE, build
from pocketzoo.leaderboards.places import Place
from pocketzoo.leaderboards.records import Records
from pocketzoo.leaderboards.table import TOP1, Row, rows
from pocketzoo.profiler.measurement import Measurement
from pocketzoo.zoo import index

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "architectures.csv"
CLASSES = {"imagenet": 1000, "cifar10": 10, "cifar100": 100, "svhn": 10, "mnist": 10}
ZOO = {row["model"]: row for row in index.matching()}


def measurement(model: str, median_ms: float = 7.5, processor: str = "Slow & <Sure> 9", **others: Any) -> Measurement:
    """As a real one looks after a day in JSON."""
    arch = others.pop("arch", None) or Architecture.of(model)
    values: dict[str, Any] = {
        "model": model, "architecture": json.loads(arch.to_json()), "input_shape": arch.input_shape, "device": "cpu",
        "runtime": "onnxruntime", "dtype": "fp32", "layout": "nchw", "threads": 1, "median_ms": median_ms,
        "low_ms": 0.99 * median_ms, "high_ms": 1.01 * median_ms, "percentiles_ms": {"p5": median_ms}, "rounds": 17,
        "reference": model, "reference_ms": median_ms, "ratio": 1.0, "protocol": {"threads": 1},
        "stamp": {"processor": processor, "date": "2031-05-06T00:00:00+00:00"},
        "versions": {"onnxruntime": "1.99"}, "warnings": (),
    }  # fmt: skip
    return Measurement(**{**values, **others})


def result(arch: Architecture, test: float = 0.875, data: str = "digits") -> dict[str, Any]:
    recipe = json.loads(json.dumps(Recipe(epochs=4).__dict__))
    provenance = {"data": data, "date": "2031-05-06T00:00:00+00:00", "seed": 3, "pocketzoo": "9.9"}
    return {
        "format": 1, "architecture": json.loads(arch.to_json()), "recipe": recipe,
        "accuracy": {"validation": 0.9, "test": test}, "costs": {"params": 1234, "macs": 56789}, "measurements": [],
        "provenance": provenance,
    }  # fmt: skip


def in_table(table: Sequence[Row], label: str, dataset: str) -> Row:
    (row,) = [row for row in table if (row.network.label, row.dataset) == (label, dataset)]
    return row


# -- published accuracy ------------------------------------------------------------------------------------------------


def test_every_accuracy_belongs_to_a_network_of_the_zoo_and_has_a_source() -> None:
    seen = set()
    for row in published():
        assert row.model in ZOO
        assert row.num_classes == CLASSES[row.dataset]
        assert row.source.strip()
        assert 40 < row.top1_percent < (row.top5_percent or 100) <= 100
        form = (row.model, row.resolution, json.dumps(row.settings), row.dataset, row.source)
        assert form not in seen
        seen.add(form)
    assert len({row.model for row in published()}) > 120


@pytest.mark.skipif(not REFERENCE.exists(), reason="needs the reference tables beside the checkout")
def test_accuracies_are_on_the_networks_that_the_papers_describe() -> None:
    """A verified figure of the reference, found by its exact counts, is what the table says of such a network."""
    said: dict[tuple[int, ...], set[float]] = {}
    for row in rows(Records()):
        if not row.dataset:
            continue
        counts = (*(int(row.cells[name].value) for name in ("params", "macs")), row.network.num_classes or 0)
        figures = {figure.value for figure in (row.cells[TOP1], *row.others)}
        said[counts] = said.get(counts, set()) | figures
    checked = 0
    for reference in csv.DictReader(REFERENCE.open()):
        printed = re.match(r"[\d.]+", reference["paper_top1"])
        others = ("torchvision)", "width_mult", "ShuffleNet v2 paper")  # forms beside which their papers' figures stand
        another = any(word in reference["variant"] for word in others)
        unverified = "recalled" in reference["paper_figures_from"] or "not definable" in reference["status"]
        if not printed or another or unverified or not reference["params"]:
            continue
        counts = tuple(int(reference[name]) for name in ("params", "macs", "num_classes"))
        if counts in said:
            assert float(printed[0]) in {round(value, 3) for value in said[counts]}, reference["variant"]
            checked += 1
    assert checked > 100


def test_torchvisions_figures_are_those_of_its_weights() -> None:
    from torchvision.models import get_model_weights

    ours = [row for row in published() if row.source.startswith("torchvision")]
    for row in ours:
        weights = getattr(get_model_weights(row.model), row.source.split()[-1]).meta
        theirs = weights["_metrics"]["ImageNet-1K"]
        assert (row.top1_percent, row.top5_percent) == (theirs["acc@1"], theirs["acc@5"])
        assert weights["num_params"] == ZOO[row.model]["params"]
    assert {row.model for row in ours} == set(torchvisions())


def torchvisions() -> list[str]:
    import torchvision.models

    return [name for name in torchvision.models.list_models(module=torchvision.models) if name in ZOO]


# -- counts and phones -------------------------------------------------------------------------------------------------


def test_the_networks_are_those_of_the_zoo_and_the_published_forms() -> None:
    stored = networks.networks().values()
    assert [(n.model, dict(n.settings)) for n in stored] == list(networks.listed()), STALE.format("networks")
    for network in stored:
        if not network.settings:
            row = ZOO[network.model]
            assert (network.costs["params"], network.costs["macs"]) == (row["params"], row["macs"])
            assert (network.family, network.resolution, network.num_classes) == (
                row["family"], row["resolution"], row["num_classes"],
            )  # fmt: skip


STALE = "stale: python -m pocketzoo.leaderboards.{}"
SOME = [*networks.networks().values()][::17]


@pytest.mark.parametrize("network", SOME, ids=lambda n: n.label)
def test_a_network_is_counted_as_stored(network: networks.Network) -> None:
    assert networks.count(network.model, network.settings) == network, STALE.format("networks")
    arch = Architecture.of(network.model, **network.settings)
    assert network.key == arch.key
    assert eval(network.create.replace("pocketzoo.create_model", "Architecture.of")) == arch


@pytest.mark.slow
def test_all_networks_and_phones_are_fresh() -> None:
    for network in networks.networks().values():
        assert networks.count(network.model, network.settings) == network, STALE.format("networks")
    check_phones([*networks.networks().values()])


def check_phones(some: Sequence[networks.Network]) -> None:
    for network, device, runtime, now in phones.on_phones(some):
        stored = phones.phones()[Place(device, runtime)][network.key]
        if isinstance(now, str) or isinstance(stored, str):
            assert now == stored, STALE.format("phones")
        else:
            assert stored == replace(now, value=float(f"{now.value:.4g}")), STALE.format("phones")


def test_phones_say_what_was_published_and_predict_the_rest() -> None:
    check_phones(SOME[::4])
    pixel = phones.phones()[Place("pixel1", "tflite")]
    by_label = {network.label: pixel[network.key] for network in networks.networks().values()}
    assert str(by_label["mobilenet_v2, resolution 160"]).startswith("published: tensorflow/models")
    assert by_label["mobilenet_v2, resolution 160"].value == 40.2  # type: ignore[union-attr]
    predicted = by_label["mobilenet_v1, resolution 128"]
    assert re.match(r"predicted for pixel1, tflite, with mean error \d+ %", str(predicted))
    outside = [
        (p.device, said) for p, known in phones.phones().items() for said in known.values() if isinstance(said, str)
    ]
    assert outside
    assert all(device in said and "operator" in said for device, said in outside)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_records_are_stored_once_and_come_back(tmp_path: Path) -> None:
    first, second = measurement("lenet5"), measurement("lenet5", runtime="eager")
    trained = result(Architecture.of("lenet5"))
    assert records.add([first.to_dict(), first.to_dict(), trained], tmp_path) == 2
    assert records.add([trained, second.to_dict()], tmp_path) == 1
    held = records.stored([tmp_path])
    assert held.measurements == (
        Measurement.from_dict(json.loads(first.to_json())), Measurement.from_dict(json.loads(second.to_json())),
    )  # fmt: skip
    assert held.results == (trained,)
    assert records.stored([tmp_path, tmp_path]) == held


def test_many_processes_add_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps([measurement("lenet5", ms).to_dict() for ms in range(1, 30)]))
    code = (
        "import sys; from pocketzoo.leaderboards import records; source, start, folder = sys.argv[1:];"
        "records.add(records.read(source)[int(start) :: 3], folder)"
    )
    given = [sys.executable, "-c", code, str(tmp_path / "one.json")]
    writers = [subprocess.Popen([*given, start, str(tmp_path)]) for start in "0120"]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    assert sorted(m.median_ms for m in records.stored([tmp_path]).measurements) == list(range(1, 30))
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".measurements.*.jsonl"))


def test_the_users_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCKETZOO_HOME", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert records.user_folder() == tmp_path / "data" / "pocketzoo" / "records"
    monkeypatch.setenv("POCKETZOO_HOME", str(tmp_path / "zoo"))
    records.add([measurement("lenet5").to_dict()])
    assert (tmp_path / "zoo" / "records" / "measurements.jsonl").exists()
    assert measurement("lenet5").median_ms in {m.median_ms for m in records.stored().measurements}


@pytest.mark.parametrize("line", ["{", "[]", '{"median_ms": 3}', "null"])
def test_a_broken_line_is_named(line: str, tmp_path: Path) -> None:
    records.add([measurement("lenet5").to_dict()], tmp_path)
    with (tmp_path / "measurements.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InvalidRun, match=r"measurements\.jsonl, line 2 is no record .*correct that line or remove it"):
        records.stored([tmp_path])


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"a": 1}, "neither a Measurement nor a Result: it has a"),
        ({**measurement("lenet5").to_dict(), "rounds_": 1}, "not a Measurement"),
        ({**result(Architecture.of("lenet5")), "architecture": None}, "bare module"),
    ],
)
def test_what_is_no_record_is_not_stored(record: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match=says):
        records.add([measurement("lenet5").to_dict(), record], tmp_path)
    assert not list(tmp_path.iterdir())


def test_folders_that_do_not_exist_are_not_empty_stores(tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="no folder"):
        records.stored([tmp_path / "none"])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_highest_accuracy_is_shown_and_the_others_are_kept() -> None:
    row = in_table(rows(Records()), "mobilenet_v2", "imagenet")
    figures = [r.top1_percent for r in published() if (r.model, r.resolution, r.settings) == ("mobilenet_v2", 224, {})]
    assert row.cells[TOP1].value == max(figures)
    assert sorted([row.cells[TOP1].value, *(figure.value for figure in row.others)]) == sorted(figures)


def test_a_result_has_a_row_of_its_own() -> None:
    arch = Architecture.of("mobilenet_v2", num_classes=10, resolution=32)
    held = Records(results=(result(arch), result(arch.with_widths({"stem": 24}), 0.5)))
    table = rows(held)
    row = in_table(table, "mobilenet_v2, resolution 32, num_classes 10", "digits")
    assert (row.cells[TOP1].value, row.cells["params"].value) == (87.5, 1234)
    assert str(row.cells[TOP1]) == (
        "measured on the test images of digits after 4 epochs, 2031-05-06, seed 3, pocketzoo 9.9"
    )
    (own,) = [row for row in table if "own widths" in row.network.label]
    assert Architecture.from_json(json.dumps(own.network.architecture)) == arch.with_widths({"stem": 24})
    assert str(arch.with_widths({"stem": 24}).to_json()) in own.network.create


def test_a_network_without_an_accuracy_is_there_with_its_counts() -> None:
    row = in_table(rows(Records()), "preresnet56", "")
    assert set(row.cells) == {"params", "macs", "size_bytes", "peak_memory_bytes", "energy_uj"}
    assert row.cells["size_bytes"].value == 4 * ZOO["preresnet56"]["params"]


# -- what is built -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    small = Architecture.of("mobilenet_v2", resolution=112)
    held = [
        measurement("mobilenet_v2", 7.5),
        measurement("mobilenet_v2", 6.25, stamp={"processor": "Other", "date": "2030"}),
        measurement("mobilenet_v2", 9.5, stamp={"processor": "Other", "date": "2029"}),
        measurement("mobilenet_v2", 1.5, arch=small),
        measurement("</script><b>|x", arch=small, architecture=None),
        measurement("evil", arch=replace(small, family="nowhere:bad")),
    ]  # fmt: skip
    records.add(
        [m.to_dict() for m in held] + [result(Architecture.of("lenet5"), data="<i>mine</i>")], folder / "records"
    )
    build(folder / "out", [folder / "records"])
    return folder / "out"


KINDS = ("counted", "measured", "predicted", "published")


def cells(built: Path, network: str) -> dict[str, str]:
    (row,) = [row for row in csv.DictReader((built / CSV).open()) if row["network"] == network]
    return row


def test_the_csv_says_where_every_number_comes_from(built: Path) -> None:
    table = [*csv.DictReader((built / CSV).open())]
    for row in table:
        for name in (name for name in row if f"{name}_source" in row):
            assert bool(row[name]) == bool(row[f"{name}_source"])
            assert not row[name] or row[f"{name}_source"].split()[0].strip(":") in KINDS
    row = cells(built, "mobilenet_v2")
    assert (row["macs"], row["params"]) == ("300774272", "3504872")
    assert row["latency_ms Slow & <Sure> 9, onnxruntime_source"] == (
        "measured on Slow & <Sure> 9, onnxruntime (onnxruntime 1.99), 1 thread, 2031-05-06, 17 rounds, within 1.0 %"
    )
    assert row["latency_ms Other, onnxruntime"] == "6.25", "the latest measurement counts"
    assert row["latency_ms pixel1, tflite"] == "73.8"
    small = cells(built, "mobilenet_v2, resolution 112")
    assert small["latency_ms Slow & <Sure> 9, onnxruntime"] == "1.5"
    assert small["params"] == row["params"]
    assert int(small["macs"]) < int(row["macs"]) / 3.5
    assert small["latency_ms pixel1, tflite_source"].startswith("predicted for pixel1")
    (foreign,) = [row for row in table if row["model"] == "nowhere:bad"]
    assert foreign["macs"] == "", "a module that a record names is not imported"
    assert foreign["latency_ms Slow & <Sure> 9, onnxruntime"] == "7.5"


def test_markdown_and_page_escape_what_records_say(built: Path) -> None:
    text = (built / MARKDOWN).read_text()
    (line,) = [line for line in text.splitlines() if "script" in line]
    assert r"\</script\>\<b\>\|x" in line
    widths = {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    page = (built / PAGE).read_text()
    data = page.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    assert "<" not in data
    assert "</script><b>|x" in {row["label"] for row in json.loads(data)["rows"]}
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page.split("Plotly")[0])


def test_a_page_is_the_same_from_the_same_records(built: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", [built.parent / "records"])
    for name in (CSV, MARKDOWN, PAGE):
        assert (tmp_path / "again" / name).read_bytes() == (built / name).read_bytes()


def test_only_an_older_leaderboard_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    build(tmp_path / "out", [tmp_path / "empty"])
    records.add([measurement("lenet5").to_dict()], tmp_path / "records")
    build(tmp_path / "out", [tmp_path / "records"])
    assert "Sure" in (tmp_path / "out" / CSV).read_text()
    theirs = tmp_path / "site"
    theirs.mkdir()
    (theirs / PAGE).write_text("mine")
    with pytest.raises(InvalidRun, match=r"holds index\.html but no leaderboard"):
        build(theirs, [tmp_path / "records"])
    assert [path.name for path in theirs.iterdir()] == [PAGE]


# -- commands ----------------------------------------------------------------------------------------------------------


def run(*arguments: object, given: str | None = None, command: click.Command = leaderboard_command) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], input=given)


def test_records_are_added_from_runs_files_and_pipes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result(Architecture.of("lenet5")), indent=1))
    lines = [measurement("lenet5", ms).to_json() for ms in (1.0, 2.0)]
    (tmp_path / "list.json").write_text(f"[{lines[0]}]")
    store = tmp_path / "store"
    said = run("add", folder, tmp_path / "list.json", "-", "--into", store, "--json", given="\n".join(lines))
    assert json.loads(said.output) == {"read": 4, "added": 3, "folder": str(store)}
    again = run("add", folder, "--into", store)
    assert again.output == f"added 0 of 1 records to {store}; the others were there\n"
    assert len(records.stored([store]).measurements) == 2


@pytest.mark.parametrize(
    ("text", "says"), [("", "no records"), ("7", "no records"), ("{\n}{", "line 1"), (None, "no ")]
)
def test_sources_that_hold_no_records(text: str | None, says: str, tmp_path: Path) -> None:
    source = tmp_path / "x.json"
    if text is not None:
        source.write_text(text)
    refused = run("add", source, "--into", tmp_path / "store")
    assert isinstance(refused.exception, PocketzooError)
    assert says in str(refused.exception)
    assert str(source) in str(refused.exception)


def test_the_build_command_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    said = run("build", "--out", tmp_path / "out", "--records", tmp_path / "records", "--json")
    assert json.loads(said.output) == [str(tmp_path / "out" / name) for name in (CSV, MARKDOWN, PAGE)]
    table = csv.DictReader(io.StringIO((tmp_path / "out" / CSV).read_text()))
    assert {row["model"] for row in table} == set(ZOO)
