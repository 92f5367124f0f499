"""Costs reported, latency measured, calibrated and predicted, models exported."""

import os

# From 1.29 on ONNX Runtime sends telemetry by default, in the background, while we measure.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
