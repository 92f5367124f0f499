"""Import this before torchvision or timm: torchvision's wheel on PyPI is built for CUDA, and its operators do not load
beside a CPU build of torch. Its Python part only wants their schemas; no test calls them."""

import importlib.util
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def _define_operators() -> torch.library.Library | None:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "torchvision belongs to the test extra: pip install -e .[test]"
    assert spec.origin is not None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            library.define(schema)
        return library
    return None


LIBRARY = _define_operators()  # the schemas live as long as this does
