"""The quantization formats, as smelt's arguments and as mlx-lm's."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A mode with its bits and group size; bits 0 means no quantization."""

    mode: str
    bits: int
    group: int

    @property
    def id(self) -> str:
        return f"affine-{self.bits}bit-g{self.group}" if self.mode == "affine" else self.mode

    @property
    def smelt_args(self) -> list[str]:
        if self.mode != "affine":
            return ["--mode", self.mode]
        return ["--bits", str(self.bits), "--group-size", str(self.group)]

    @property
    def convert_args(self) -> dict[str, Any]:
        if self.mode == "none":
            return {"quantize": False}
        params = {"q_bits": self.bits, "q_group_size": self.group, "q_mode": self.mode}
        return {"quantize": True, **params}


AFFINE = [Format("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
DEFAULT = Format("affine", 4, 64)
MXFP4 = Format("mxfp4", 4, 32)
MXFP8 = Format("mxfp8", 8, 32)
NVFP4 = Format("nvfp4", 4, 16)
NONE = Format("none", 0, 0)
ALL = [*AFFINE, MXFP4, MXFP8, NVFP4, NONE]
ONE_PER_MODE = [DEFAULT, MXFP4, MXFP8, NVFP4, NONE]
