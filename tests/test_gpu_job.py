"""The stand-in for OpenCV on a GPU machine without it."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu" / "cv2.py"


@pytest.fixture(scope="module")
def stand_in():
    spec = importlib.util.spec_from_file_location("stand_in", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("shape", "size"), [((210, 160), (84, 84)), ((100, 90), (84, 84))])
def test_frames_are_shrunk_as_opencv_shrinks_them(stand_in, shape, size):
    frames = np.random.default_rng(0).integers(0, 256, (20, *shape)).astype(np.uint8)
    for frame in frames:
        found = stand_in.resize(frame, size, stand_in.INTER_AREA)
        expected = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        assert found.shape == expected.shape
        off = np.abs(found.astype(int) - expected)
        assert off.max() <= 1  # halves may be rounded up or down
        assert (off > 0).mean() < 0.01


def test_what_it_does_not_do_is_an_error(stand_in):
    assert stand_in.INTER_AREA == cv2.INTER_AREA
    with pytest.raises(NotImplementedError, match=r"shrinking grey images, got \(10, 10\)"):
        stand_in.resize(np.zeros((10, 10), np.uint8), (20, 20), stand_in.INTER_AREA)
