"""The engine says what it works on, not what it was offered."""

from __future__ import annotations

import onnxruntime
import pytest

from dailies.captions.ocr import RapidEngine

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("offered", [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]])
def test_without_a_gpu_it_says_cpu_also_where_one_is_offered(monkeypatch, offered):
    """A runtime for GPUs whose driver does not fit offers one, and works on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    assert RapidEngine().device == "cpu"
