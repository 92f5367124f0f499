"""Train, evaluate and predict, from names and files to results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..errors import InvalidData, InvalidRun, InvalidSetting
from ..graph.channel_graph import trace
from ..profiler.export import open_session
from ..zoo.architecture import Architecture
from .checkpoint import NAME as CHECKPOINT_NAME
from .data import DataInfo, DataSet, load_data
from .evaluate import Score, evaluate
from .folder import open_folder
from .images import Encoded, decode
from .loop import History, fit
from .recipe import Recipe, recipe_for
from .result import Result, provenance
from .saved import KEY, ONNX_NAME, PACKED_NAME, RESULT_NAME, load_with_info, read_description, save_model

RUNTIMES = ("torch", "onnx")
EXAMPLES = 32  # validation images on which the ONNX file is compared with PyTorch
BATCH = 64


class Prediction(NamedTuple):
    """The likeliest class of one image file, and its probability."""

    path: str
    label: str
    probability: float


def train(
    model: str | Architecture,
    data: str | Path | DataSet,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    resolution: int | None = None,
    teacher: nn.Module | None = None,
    progress: bool = False,
) -> Result:
    """Train a zoo name, `module:factory` or Architecture on data and leave model and result in `out`.

    A name takes classes, channels and resolution from the data. A run that was stopped goes on where it was; a
    finished one is not touched: its result is read. Raises InvalidRun when `out` holds another run.
    """
    source = data.name if isinstance(data, DataSet) else data
    if isinstance(model, Architecture):
        resolution = resolution or model.resolution
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=resolution)
    architecture = fitted(model, dataset)
    recipe = recipe or recipe_for(len(dataset.train))
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        network = architecture.build()  # before the folder is begun: what cannot be built leaves nothing behind
    record = json.loads(architecture.to_json())
    folder = open_folder(out, {"kind": "train", "architecture": record, "data": dataset.hash, "recipe": asdict(recipe)})
    if not (folder / RESULT_NAME).exists():
        accelerator = Accelerator()
        history = fit(
            network, dataset, recipe, teacher=teacher, checkpoint_dir=folder, accelerator=accelerator, progress=progress
        )
        if accelerator.is_main_process:
            result, _ = tested(network, architecture, dataset, recipe, history, source)
            examples = dataset.info.normalise(dataset.val.images[:EXAMPLES])
            save_model(folder, network, architecture, dataset.info, result, example=examples, overwrite=True)
            (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
        accelerator.wait_for_everyone()
    return Result.from_json((folder / RESULT_NAME).read_text(encoding="utf-8"))


def tested(
    network: nn.Module,
    architecture: Architecture | None,
    data: DataSet,
    recipe: Recipe,
    history: History,
    source: str | Path,
) -> tuple[Result, Score]:
    """The one reading of the test split: the Result of a finished training, and which images were right."""
    network.cpu()
    score = evaluate(network, data.test, data.info)
    result = Result(
        architecture,
        recipe,
        {"validation": history.val_accuracy, "test": score.accuracy},
        asdict(trace(network, (1, data.in_channels, data.resolution, data.resolution)).price()),
        provenance(data.info, seed=recipe.seed, seconds=history.seconds, source=source),
    )
    return result, score


def fitted(model: str | Architecture, data: DataSet) -> Architecture:
    """The architecture for the data's classes, channels and resolution; raises InvalidSetting when one contradicts."""
    form: dict[str, Any] = {
        "num_classes": data.num_classes,
        "in_channels": data.in_channels,
        "resolution": data.resolution,
    }
    if isinstance(model, str):
        return Architecture.of(model, **form)
    for name, value in form.items():
        if getattr(model, name) != value:
            raise InvalidSetting(f"the architecture has {name}={getattr(model, name)}, {data.name} needs {value}")
    return model


def evaluate_run(
    run: str | Path, data: str | Path | DataSet, *, split: str = "test", trust: Sequence[str] = ()
) -> Score:
    """A saved model's accuracy on a split (`val`, `test`) of data with the same classes; raises InvalidData."""
    model, architecture, info = load_with_info(run, trust=trust)
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=architecture.resolution)
    if split not in ("train", "val", "test"):
        raise InvalidData(f"no split {split!r}; expected train, val or test")
    if (dataset.classes, dataset.in_channels) != (info.classes, info.in_channels):
        raise InvalidData(
            f"{dataset.name} has {dataset.num_classes} classes and {dataset.in_channels} channels "
            f"({', '.join(dataset.classes[:3])}, ...); the model was trained on {len(info.classes)} and "
            f"{info.in_channels} ({', '.join(info.classes[:3])}, ...)"
        )
    return evaluate(model, getattr(dataset, split), info)


def predict(
    run: str | Path, images: Sequence[str | Path], *, runtime: str = "torch", trust: Sequence[str] = ()
) -> list[Prediction]:
    """The class of each image file by a run's folder or one of its files; `runtime` is torch or onnx.

    Images go through the resize rule and normalisation that the model was trained with. Raises InvalidData naming an
    image that cannot be read, InvalidRun for what is no model of ours.
    """
    if runtime not in RUNTIMES:
        raise InvalidSetting(f"no runtime {runtime!r}; expected one of {list(RUNTIMES)}")
    forward, info = _onnx_forward(Path(run)) if _wants_onnx(run, runtime) else _torch_forward(run, trust)
    predictions = []
    for start in range(0, len(images), BATCH):
        paths = [str(path) for path in images[start : start + BATCH]]
        pixels = [decode(Encoded(Path(path), path), info.in_channels, info.resolution) for path in paths]
        batch = torch.stack([torch.from_numpy(array.copy()) for array in pixels])
        probabilities, labels = forward(info.normalise(batch)).softmax(1).max(1)
        predictions += [
            Prediction(path, info.classes[label], probability)
            for path, label, probability in zip(paths, labels.tolist(), probabilities.tolist(), strict=True)
        ]
    return predictions


def _wants_onnx(run: str | Path, runtime: str) -> bool:
    return runtime == "onnx" or Path(run).suffix == ".onnx"


def _torch_forward(run: str | Path, trust: Sequence[str]) -> tuple[Any, DataInfo]:
    model, _, info = load_with_info(run, trust=trust)

    def forward(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(images)
        return logits

    return forward, info


def _onnx_forward(run: Path) -> tuple[Any, DataInfo]:
    file = run / ONNX_NAME if run.is_dir() else run.with_suffix(".onnx")
    if not file.exists():
        packed = run / PACKED_NAME if run.is_dir() else run
        if packed.suffix == Path(PACKED_NAME).suffix and packed.exists():
            raise InvalidRun(f"{packed} is a packed file: first `pocketzoo unpack {packed} --to {file}`")
        raise InvalidRun(f"there is no {file}; expected the folder of a finished run, or its best.onnx")
    try:
        session = open_session(file)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise InvalidRun(f"{file} is not a readable ONNX file ({str(error).splitlines()[0]})") from None
    record = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    _, info = read_description(record, file)
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]), info
