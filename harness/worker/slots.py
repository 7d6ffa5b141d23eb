"""Owns the tensors a kernel is called on inside a worker: rotating slots with guard bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.worker.image import Image
from harness.worker.moves import Move, make
from harness.worker.protocol import GUARD_BYTES, ImageLayout, TensorLayout
from tasks.spec import DTYPES

POISON = 0xFF  # every byte: NaN in fp16, bf16, fp32 and fp64


@dataclass(frozen=True)
class Slot:
    """One set of tensors at fixed addresses; `raw` holds each with its guards."""

    raw: dict[str, Tensor]
    tensors: dict[str, Tensor]


class Slots:
    """`count` slots of one layout on `device`."""

    def __init__(self, layout: ImageLayout, count: int, device: torch.device) -> None:
        self.layout = layout
        self.device = device
        self.slots = [self._allocate() for _ in range(count)]

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int) -> Slot:
        return self.slots[index]

    def _allocate(self) -> Slot:
        raw: dict[str, Tensor] = {}
        tensors: dict[str, Tensor] = {}
        for t in self.layout.tensors:
            padded = -(-t.stored // 8) * 8  # whole float64 words, so that poison is one fill
            buffer = torch.full((padded,), POISON, dtype=torch.uint8, device=self.device)
            raw[t.name] = buffer
            inner = buffer[GUARD_BYTES : GUARD_BYTES + t.nbytes]
            tensors[t.name] = inner.view(DTYPES[t.dtype]).view(t.shape)
        return Slot(raw, tensors)

    def fill(self, index: int, image: Image, content: int) -> None:
        """Copy the inputs of a content into a slot and poison its outputs."""
        slot = self.slots[index]
        for t in self.layout.tensors:
            if t.role == "input":
                slot.tensors[t.name].copy_(image.content(self.layout, content, t), non_blocking=True)
        self.poison(index)

    def move(self, index: int, moves: Sequence[Move]) -> None:
        """Let rows of a slot's inputs trade places."""
        make(self.slots[index].tensors, moves)

    def poison(self, index: int) -> None:
        """Make every output byte of a slot NaN, guards included."""
        for t in self._outputs():
            self.slots[index].raw[t.name].view(torch.float64).fill_(_NAN)

    def read_back(self, index: int, answers: Image, names: set[str], result: Tensor | None) -> None:
        """Copy the named tensors with their guards into the area for answers.

        `result` stands in for the first output where a baseline returned its own tensor.
        """
        slot = self.slots[index]
        if result is not None:
            slot.tensors[self._outputs()[0].name].copy_(result)
        for t in self.layout.tensors:
            if t.name in names:
                answers.answer(t).copy_(slot.raw[t.name][: t.stored])

    def _outputs(self) -> list[TensorLayout]:
        return [t for t in self.layout.tensors if t.role == "output"]


# A float64 whose eight bytes are all POISON.
_NAN = torch.full((8,), POISON, dtype=torch.uint8).view(torch.float64)[0].item()
