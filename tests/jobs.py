"""A job for the runner: two tiny ONNX models; and what a run may leave behind: nothing."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIDE = 8
MODELS = {"narrow": 4, "wide": 32}  # output channels


def write_models(folder: Path) -> dict[str, Path]:
    """File name -> path of a 3x3 convolution and a ReLU for each model."""
    return {f"{name}.onnx": _write(folder / f"{name}.onnx", channels) for name, channels in MODELS.items()}


def _write(path: Path, channels: int) -> Path:
    weights = np.random.default_rng(0).standard_normal((channels, 3, 3, 3), dtype=np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4), helper.make_node("Relu", ["y"], ["z"])]
    shapes = {name: [1, n, SIDE, SIDE] for name, n in (("x", 3), ("z", channels))}
    ends = {name: [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in shapes.items()}
    graph = helper.make_graph(nodes, "tiny", ends["x"], ends["z"], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def job(**protocol: float) -> dict[str, Any]:
    """The least work: one warm-up, as few rounds as the interval needs."""
    least = {"threads": 1, "warmup": 1, "rounds": 6, "seconds": 0.1, "tolerance": 0.9}
    models = {name: {"file": f"{name}.onnx", "shape": [1, 3, SIDE, SIDE]} for name in MODELS}
    return {"runtime": "onnxruntime", "protocol": {**least, **protocol}, "reference": "narrow", "models": models}


def endless() -> dict[str, Any]:
    """A job that no test waits for."""
    return job(seconds=600, tolerance=0)


def left_behind(folder: Path, within_s: float = 20) -> list[str]:
    """Files in the temporary folder of a host, and processes that work in it, once they had time to go."""
    deadline = time.monotonic() + within_s
    while (found := [*map(str, folder.iterdir()), *_workers(folder)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _workers(folder: Path) -> list[str]:
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(folder) in str(link.readlink()):
                found.append(str(link))
        except OSError:  # ended meanwhile, or is not ours
            continue
    return found
