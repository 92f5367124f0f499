"""What a run leaves behind: best.json, best.safetensors and best.onnx, each enough to use the model alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CorruptFile, InvalidRun, InvalidSetting, InvalidWidths, UntraceableModel, WeightsMismatch
from ..packing.edits import Edit, apply
from ..profiler.export import export_onnx
from ..zoo.architecture import Architecture
from .data import DataInfo
from .folder import write_text, write_with
from .packed_file import is_packed, load_packed, read_packed
from .result import Result
from .state import load_state, state_of

KEY = "pocketzoo"  # of the record in a file's metadata
JSON_NAME, WEIGHTS_NAME, ONNX_NAME, RESULT_NAME = "best.json", "best.safetensors", "best.onnx", "result.json"
PACKED_NAME = "best.pz"
MOST_RESOLUTION = 1 << 12  # pixels: what a damaged record says must not fill the memory
LARGER = 2  # times a file's size: no model in it has more bytes of weights


def save_model(
    out: str | Path,
    model: nn.Module,
    architecture: Architecture,
    info: DataInfo,
    result: Result | None = None,
    *,
    example: Tensor | None = None,
    overwrite: bool = False,
) -> Path:
    """Write best.json, best.safetensors, best.onnx and, with a result, result.json; the folder.

    Each file carries the Architecture and `info` (class names, resolution, mean, deviation, resize rule). The ONNX
    file is checked on `example`, normalised images as float [N, C, H, W]. Raises InvalidRun when the folder cannot be
    written or already holds a model and `overwrite` is not set, ExportMismatch when ONNX Runtime disagrees.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRun(f"cannot use {folder} as the output folder: {error.strerror or error}") from None
    if not overwrite and (folder / WEIGHTS_NAME).exists():
        raise InvalidRun(f"{folder} already holds a trained model; give another folder, or remove this one")
    record = describe(architecture, info)
    export_onnx(model, architecture.input_shape, folder / ONNX_NAME, {KEY: record}, example)
    save_weights(folder / WEIGHTS_NAME, model, architecture, info)
    write_text(folder / JSON_NAME, json.dumps(json.loads(record), indent=1, sort_keys=True) + "\n")
    if result is not None:
        write_text(folder / RESULT_NAME, result.to_json() + "\n")
    return folder


def save_weights(
    path: str | Path, model: nn.Module, architecture: Architecture, info: DataInfo, edits: Sequence[Edit] = ()
) -> None:
    """Write one safetensors file that `load` can use alone; raises InvalidRun when it cannot be written."""
    metadata = {"format": "pt", KEY: describe(architecture, info, edits)}
    write_with(Path(path), lambda temporary: save_file(state_of(model), temporary, metadata))


def describe(architecture: Architecture, info: DataInfo, edits: Sequence[Edit] = ()) -> str:
    """The Architecture's JSON with one more entry, `data`, and one for what was done to the structure."""
    record = {**json.loads(architecture.to_json()), "data": info.to_dict()}
    return json.dumps({**record, "edits": list(edits)} if edits else record, sort_keys=True)


def unpack_to(packed: str | Path, target: str | Path, *, trust: Sequence[str] = ()) -> int:
    """Write a packed file's model as .safetensors or .onnx, by the target's ending; the bytes written.

    The ONNX file is checked against PyTorch, the other one is read by `load`. Raises InvalidSetting for another ending,
    InvalidRun for a file that is there already or a model that is not packed with its data, CorruptFile.
    """
    source, path = weights_file(packed), Path(target)
    if path.suffix not in (".safetensors", ".onnx"):
        raise InvalidSetting(f"cannot unpack to {path.name!r}; expected a name that ends in .safetensors or .onnx")
    if path.exists():
        raise InvalidRun(f"{path} is there already; give a new name, or move it away")
    if not is_packed(source):
        raise InvalidRun(f"{source} is no packed file; expected one that `pocketzoo compress` wrote")
    model, architecture, info, edits = load_with_edits(source, trust=trust)
    if path.suffix == ".onnx":
        export_onnx(model, architecture.input_shape, path, {KEY: describe(architecture, info, edits)})
    else:
        save_weights(path, model, architecture, info, edits)
    return path.stat().st_size


def load(path: str | Path, *, trust: Sequence[str] = ()) -> nn.Module:
    """The trained model of a run's folder, or of a safetensors or packed file of ours, in eval mode, on the CPU.

    A network that is not the zoo's is built by importing its `module:factory`, so only when `trust` names it.
    Raises InvalidRun for what is no run, WeightsMismatch for a damaged file or weights that do not fit.
    """
    file = weights_file(path)
    return load_packed(file, trust=trust) if is_packed(file) else load_with_info(file, trust=trust)[0]


def load_with_info(path: str | Path, *, trust: Sequence[str] = ()) -> tuple[nn.Module, Architecture, DataInfo]:
    """As `load`, with the Architecture and what it takes to prepare images."""
    return load_with_edits(path, trust=trust)[:3]


def load_unedited(path: str | Path, *, trust: Sequence[str] = ()) -> tuple[nn.Module, Architecture, DataInfo]:
    """As `load_with_info`; raises InvalidRun too where the network has other layers than its Architecture."""
    model, architecture, info, edits = load_with_edits(path, trust=trust)
    if edits:
        raise InvalidRun(
            f"{path} was compressed into other layers, which no new widths can be given: shrink or search from the"
            " network that it was before, then compress what comes out"
        )
    return model, architecture, info


def load_with_edits(
    path: str | Path, *, trust: Sequence[str] = ()
) -> tuple[nn.Module, Architecture, DataInfo, tuple[Edit, ...]]:
    """As `load_with_info`, with what was done to the structure since it was the Architecture's."""
    file = weights_file(path)
    if is_packed(file):
        return _load_packed(file, trust)
    text, tensors = _read(file)
    architecture, info, edits = _described(text, file)
    if architecture.is_foreign and architecture.family not in trust:
        raise InvalidRun(
            f"{file} was made by {architecture.family!r}, whose code would be imported; "
            f"if you trust it, give trust=[{architecture.family!r}]"
        )
    with torch.random.fork_rng([]):
        model = architecture.build()
    if edits:
        model = _edited(model, edits, file)
    load_state(model, tensors, str(file))
    return model.eval(), architecture, info, tuple(edits)


def _edited(model: nn.Module, edits: Sequence[Edit], file: Path) -> nn.Module:
    """The model with what was done to its structure; replaced parts hold memory but no numbers."""
    try:
        model = apply(model, edits, LARGER * file.stat().st_size)
    except (CorruptFile, InvalidWidths, UntraceableModel) as error:
        raise InvalidRun(f"{file} does not say what model it holds ({error}); unpack or save it again") from None
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
    return model


def _load_packed(file: Path, trust: Sequence[str]) -> tuple[nn.Module, Architecture, DataInfo, tuple[Edit, ...]]:
    unpacked = read_packed(file, trust=trust)
    if unpacked.architecture is None or "data" not in unpacked.header:
        raise InvalidRun(f"{file} does not say what images its model takes; it was packed without data")
    return unpacked.model, unpacked.architecture, _info(unpacked.header["data"], file), unpacked.edits


def _info(record: Any, file: Path) -> DataInfo:
    """DataInfo whose fields are what they should be; raises InvalidRun."""
    try:
        info = DataInfo.from_dict(record)
        numbers, words = (*info.mean, *info.std), (info.name, info.resize, info.hash, *info.classes)
        sides_fit = len(info.mean) == len(info.std) == info.in_channels and 0 < info.resolution <= MOST_RESOLUTION
        if not sides_fit or not all(isinstance(n, int | float) for n in numbers):
            raise TypeError("mean, deviation, channels and resolution do not fit")
        if not all(isinstance(word, str) for word in words):
            raise TypeError("a name that is no text")
    except (TypeError, AttributeError) as error:
        raise InvalidRun(f"{file} does not say what images its model takes ({error})") from None
    return info


def weights_file(path: str | Path) -> Path:
    """The weights of a run's folder, safetensors or packed, or the file itself; raises InvalidRun without one."""
    file = Path(path)
    if file.is_dir():
        there = [file / name for name in (WEIGHTS_NAME, PACKED_NAME) if (file / name).exists()]
        if not there:
            raise InvalidRun(
                f"{file} holds no {WEIGHTS_NAME}; expected the folder of a finished training, search or compression"
            )
        return there[0]
    if not file.exists():
        raise InvalidRun(f"there is no {file}; expected the folder of a run, or a safetensors file of ours")
    return file


def read_description(text: str, file: Path) -> tuple[Architecture, DataInfo]:
    """(Architecture, DataInfo) from `describe`'s text; raises InvalidRun naming the file."""
    return _described(text, file)[:2]


def _described(text: str, file: Path) -> tuple[Architecture, DataInfo, list[Edit]]:
    try:
        record: dict[str, Any] = json.loads(text)
        info, edits = DataInfo.from_dict(record.pop("data")), record.pop("edits", [])
        if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
            raise TypeError("edits that are no list of edits")
        return Architecture.from_json(json.dumps(record)), info, edits
    except (ValueError, KeyError, TypeError, AttributeError, InvalidSetting) as error:
        raise InvalidRun(f"{file} does not say what model it holds ({error}); train or save it again") from None


def _read(file: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsMismatch(f"{file} is damaged or no safetensors file ({error}); copy or save it again") from None
    if KEY not in metadata:
        raise InvalidRun(f"{file} was not written by pocketzoo: it does not say what model its weights belong to")
    return metadata[KEY], tensors
