# SPDX-License-Identifier: BSD-3-Clause
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Unreadable(TypeError): ...

class _Enum:
    __members__: dict[str, Any]
    def __int__(self) -> int: ...

class ScalarKind(_Enum): ...
class BceNormalize(_Enum): ...
class RegionReduce(_Enum): ...
class SampleStrategy(_Enum): ...
class ContrastSimilarity(_Enum): ...
class ContrastDenominator(_Enum): ...
class ContrastReduction(_Enum): ...

def build_info() -> dict[str, Any]: ...
def count_threads() -> int: ...
def choose_door(*arguments: object) -> int: ...

# The ops at their eager door; csrc/ops.h has their arguments, by position.
masked_bce: Callable[..., Any]
masked_bce_backward: Callable[..., Any]
region_pool: Callable[..., Any]
region_pool_backward: Callable[..., Any]
soft_region_pool: Callable[..., Any]
soft_region_pool_backward: Callable[..., Any]
patch_entropy: Callable[..., Any]
patch_entropy_backward: Callable[..., Any]
patch_entropy_crops: Callable[..., Any]
patch_entropy_crops_backward: Callable[..., Any]
patch_entropy_sample: Callable[..., Any]
region_contrast: Callable[..., Any]
region_contrast_backward: Callable[..., Any]

# The loops of the data path: csrc/arrays.cpp. Masks are of a byte per voxel, marked where it is not 0. Arrays are
# contiguous, unless said otherwise.
_Mask = NDArray[np.uint8]

def count_confusion(
    prediction: _Mask, target: _Mask, valid: _Mask | None
) -> tuple[int, int, int, int]: ...  # voxels that are valid; of these in target, prediction, both
def find_marked(
    codes: _Mask, target: _Mask | None, ranks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]: ...  # codes.size for ranks that are not there; how many are

# uint8 or uint16.
def count_levels(values: NDArray[Any], counts: NDArray[np.int64]) -> None: ...
def map_levels(values: NDArray[Any], table: NDArray[Any], out: NDArray[Any]) -> None: ...

# (channels, z, y, x) of any strides but along x.
def blend_tile(
    mean: NDArray[np.float32],
    values: NDArray[np.float32],
    before_z: NDArray[np.float32],
    before_y: NDArray[np.float32],
    total_y: NDArray[np.float32],
    before_x: NDArray[np.float32],
    total_x: NDArray[np.float32],
) -> None: ...

# Copies what of each array lies within out, of any strides, to its place there, with a cast that numpy calls safe;
# nonzero: 1 where integers are not 0, to uint8.
def copy_boxes(
    out: NDArray[Any],
    arrays: list[NDArray[Any]],
    places: list[tuple[int, ...]],
    nonzero: bool = False,
) -> None: ...

# Chunks of files, decoded and copied to boxes: csrc/chunk_cache.cpp. codec: none, zlib, gzip, zstd or blosc, by the
# functions of set_codec_functions, or "".
class ChunkLayout:
    def __init__(
        self,
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        fill: NDArray[Any],
        codec: str,
        most_stored: int,
        shuffled_bytes: int,
        header: bytes,
        order: tuple[int, ...],
        files: tuple[bytes, str, bool] | None,
    ) -> None: ...
    def set_table(
        self,
        path: bytes,
        steps: list[int],
        numbers: NDArray[np.int64],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.uint32],
        skipped: NDArray[np.uint32],
    ) -> None: ...

class ChunkCache:
    def __init__(self, most_bytes: int) -> None: ...
    def read(self, source: Any, start: Sequence[int], out: NDArray[Any]) -> None: ...  # a ChunkReader
    def clear(self) -> None: ...
    def __len__(self) -> int: ...
    most_bytes: int
    held: int
    decoded: int

def set_codec_functions(library: str, addresses: list[int]) -> None: ...

# The bytes of numbers of item_bytes, shuffled as HDF5 does, in their order again.
def unshuffle(data: bytes, item_bytes: int) -> NDArray[np.uint8]: ...
