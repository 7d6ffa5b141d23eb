"""Owns tensor maps: how the copy engine of sm_90 is told of a tensor and of the boxes it moves."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.build.launches import PLANNER, LaunchError


class TensorMap(ctypes.Structure):
    """A CUtensorMap, to be declared as `const __grid_constant__ CUtensorMap`."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


SWIZZLES = (0, 32, 64, 128)  # bytes


def tensor_map(tensor: Tensor, box: Sequence[int], swizzle: int = 128) -> TensorMap:
    """Of a tensor, its last axis contiguous, in boxes of so many elements along each axis (at most five).

    What lies outside the tensor is read as 0. Raises LaunchError. While launches are planned, gives an
    empty one: there is no address to put into it.
    """
    rank = tensor.dim()
    if len(box) != rank or swizzle not in SWIZZLES or tensor.stride(-1) != 1:
        raise LaunchError(
            f"a box of {len(box)} sizes, swizzle {swizzle}, strides {tensor.stride()}: no tensor map"
        )
    if PLANNER.get() is not None:
        return TensorMap()
    from cuda.bindings import driver

    kinds = driver.CUtensorMapDataType
    kind = {
        torch.float16: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        torch.bfloat16: kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        torch.float32: kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    }[tensor.dtype]
    sizes = [driver.cuuint64_t(n) for n in reversed(tensor.shape)]
    strides = [driver.cuuint64_t(s * tensor.element_size()) for s in reversed(tensor.stride()[:-1])]
    boxes, ones = [driver.cuuint32_t(n) for n in reversed(box)], [driver.cuuint32_t(1)] * rank
    status, made = driver.cuTensorMapEncodeTiled(
        kind, rank, tensor.data_ptr(), sizes, strides, boxes, ones,
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle(SWIZZLES.index(swizzle)),
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip
    if int(status) != 0:
        raise LaunchError(f"no tensor map of {tuple(tensor.shape)} in boxes of {tuple(box)}: {status!r}")
    return TensorMap((ctypes.c_uint64 * 16)(*(int(word) for word in made.opaque)))
