"""Measurement: a latency with everything that makes it a fact: where, with what, how, how sure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import InvalidRun

FORMAT = 1


@dataclass(frozen=True)
class Measurement:
    """One model's latency on one device by the protocol of runner.py.

    `architecture` is the Architecture's JSON as a dict, None for a bare module. `ratio` is the median over the rounds
    of its time over the reference model's in the same round: it compares runs at different speeds of the machine.
    """

    model: str
    architecture: Mapping[str, Any] | None
    input_shape: tuple[int, ...]  # [N, C, H, W]
    device: str  # as the user named it: "cpu", "cuda", "ssh://pi@board", "adb"
    runtime: str  # "eager", "eager-channels-last", "compile", "onnxruntime", "onnxruntime-int8", "openvino"
    dtype: str  # "fp32", "tf32", "fp16", "bf16", "int8"
    layout: str  # of the activations handed in: "nchw", "nhwc"
    threads: int
    median_ms: float
    low_ms: float  # 95 % interval of the median
    high_ms: float
    percentiles_ms: Mapping[str, float]  # p5, p25, p75, p95, p99
    rounds: int
    reference: str
    reference_ms: float
    ratio: float
    protocol: Mapping[str, Any]
    stamp: Mapping[str, Any]  # processor, cores, machine, system, python, date
    versions: Mapping[str, str]  # runtime -> version
    warnings: tuple[str, ...] = field(default=())

    @property
    def images_per_second(self) -> float:
        """Throughput at this batch."""
        return 1e3 * self.input_shape[0] / self.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Measurement:
        """Read `to_dict`'s values; raises InvalidRun for anything else."""
        try:
            values = dict(record)
            if (version := values.pop("format")) != FORMAT:
                raise InvalidRun(f"measurement format {version} is not {FORMAT}: written by another pocketzoo")
            values["input_shape"], values["warnings"] = tuple(values["input_shape"]), tuple(values["warnings"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidRun(f"not a Measurement: {error}") from None

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)
