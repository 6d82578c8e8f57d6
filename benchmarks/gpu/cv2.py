"""Stand-in for OpenCV on machines without it, for Gymnasium's Atari preprocessing.

OpenCV's wheel is 60 MB, but only one case of one function is used: shrinking a grey image by means
over areas. This takes two matrix products.
"""

from functools import lru_cache

import numpy as np

INTER_AREA = 3


@lru_cache(8)
def _means(source: int, target: int) -> np.ndarray:
    """Returns ``(target, source)``: the share of each old pixel in the area of each new pixel."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * (target / source)).astype(np.float32)


def resize(image: np.ndarray, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """Shrinks a grey image of bytes ``(height, width)`` to ``size``, width and height.

    Raises:
        NotImplementedError: for anything else.
    """
    height, width = image.shape[:2]
    if interpolation != INTER_AREA or image.ndim != 2 or size[0] > width or size[1] > height:
        raise NotImplementedError(f"cv2 stands in for shrinking grey images, got {image.shape}")
    shrunk = _means(height, size[1]) @ image.astype(np.float32) @ _means(width, size[0]).T
    return np.rint(shrunk).astype(np.uint8)
