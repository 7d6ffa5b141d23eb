"""Owns the shared memory between judge and workers: sealed memfds, mapped on both sides.

The inputs lie in one image that only the judge can write, so that no worker changes what another is given.
Each worker writes answers into an area of its own, so that none reads another's. Neither can be cut short
under the judge's eyes. Both sides register with CUDA where they can, which makes copies run at PCIe speed
(about 25 GB/s against 5-9 GB/s pageable).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from harness.worker.protocol import GUARD_BYTES, ImageLayout, TensorLayout
from tasks.spec import DTYPES

_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; not named by Python 3.11
_FIXED = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_REGISTER_READ_ONLY = 0x08  # cudaHostRegisterReadOnly
_READ_ONLY_SUPPORTED = 113  # CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED


class Image:
    """A mapping of `fd`; byte ranges of it as CPU tensors that share its memory."""

    def __init__(self, fd: int, size: int, *, writable: bool) -> None:
        self.fd = fd
        self.size = size
        self._writable = writable
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(fd, size, prot=access)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch has no tensors that can only be read
            self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._registered = False

    @classmethod
    def create(cls, size: int, *, shared_writable: bool = False) -> Image:
        """A new anonymous image of `size` bytes (memory is taken as pages are touched).

        Others who get the descriptor can write only where `shared_writable`; nobody can resize it.
        """
        fd = os.memfd_create("attnbench", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        image = cls(fd, size, writable=True)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED | (0 if shared_writable else _SEAL_FUTURE_WRITE))
        return image

    def register(self) -> None:
        """Pin for CUDA; a refusal only costs speed."""
        if self._registered or not torch.cuda.is_available():
            return
        if not self._writable and not _pins_read_only():
            return
        flags = 0 if self._writable else _REGISTER_READ_ONLY
        code = _cudart().cudaHostRegister(self.bytes.data_ptr(), self.size, flags)
        self._registered = int(code) == 0

    def content(self, layout: ImageLayout, content: int, tensor: TensorLayout) -> Tensor:
        """The tensor of a content (without guards), sharing memory."""
        start = layout.content_start(content) + tensor.offset + GUARD_BYTES
        raw = self.bytes[start : start + tensor.nbytes]
        return raw.view(DTYPES[tensor.dtype]).view(tensor.shape)

    def answer(self, tensor: TensorLayout) -> Tensor:
        """Raw bytes of a tensor that was read back, guards included; the worker may still change them."""
        return self.bytes[tensor.offset : tensor.offset + tensor.stored]

    def close(self) -> None:
        """Unregister and close; views handed out keep the mapping alive until they go."""
        if self._registered:
            _cudart().cudaHostUnregister(self.bytes.data_ptr())
            self._registered = False
        os.close(self.fd)


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _pins_read_only() -> bool:
    """Whether the device can register memory that the process may only read."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    value = ctypes.c_int(0)
    code = driver.cuDeviceGetAttribute(ctypes.byref(value), _READ_ONLY_SUPPORTED, torch.cuda.current_device())
    return code == 0 and value.value == 1
