"""GGUF's numbers and what they mean: tensor storage types and file types.

The tables restate constants of ggml (`ggml.h`, `ggml-common.h`: block structures) and llama.cpp (`llama.h`:
`enum llama_ftype`). A number that is not here belongs to a format newer than this version.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple


class Storage(NamedTuple):
    """How a tensor type stores its elements: blocks of `elements` elements in `octets` bytes each."""

    name: str
    elements: int
    octets: int


TENSOR_TYPES = MappingProxyType(
    {
        0: Storage("F32", 1, 4),
        1: Storage("F16", 1, 2),
        2: Storage("Q4_0", 32, 18),
        3: Storage("Q4_1", 32, 20),
        6: Storage("Q5_0", 32, 22),
        7: Storage("Q5_1", 32, 24),
        8: Storage("Q8_0", 32, 34),
        9: Storage("Q8_1", 32, 36),
        10: Storage("Q2_K", 256, 84),
        11: Storage("Q3_K", 256, 110),
        12: Storage("Q4_K", 256, 144),
        13: Storage("Q5_K", 256, 176),
        14: Storage("Q6_K", 256, 210),
        15: Storage("Q8_K", 256, 292),
        16: Storage("IQ2_XXS", 256, 66),
        17: Storage("IQ2_XS", 256, 74),
        18: Storage("IQ3_XXS", 256, 98),
        19: Storage("IQ1_S", 256, 50),
        20: Storage("IQ4_NL", 32, 18),
        21: Storage("IQ3_S", 256, 110),
        22: Storage("IQ2_S", 256, 82),
        23: Storage("IQ4_XS", 256, 136),
        24: Storage("I8", 1, 1),
        25: Storage("I16", 1, 2),
        26: Storage("I32", 1, 4),
        27: Storage("I64", 1, 8),
        28: Storage("F64", 1, 8),
        29: Storage("IQ1_M", 256, 56),
        30: Storage("BF16", 1, 2),
        34: Storage("TQ1_0", 256, 54),
        35: Storage("TQ2_0", 256, 66),
        39: Storage("MXFP4", 32, 17),
        40: Storage("NVFP4", 64, 36),
        41: Storage("Q1_0", 128, 18),
    }
)

FILE_TYPES = MappingProxyType(
    {
        0: "F32",
        1: "F16",
        2: "Q4_0",
        3: "Q4_1",
        7: "Q8_0",
        8: "Q5_0",
        9: "Q5_1",
        10: "Q2_K",
        11: "Q3_K_S",
        12: "Q3_K_M",
        13: "Q3_K_L",
        14: "Q4_K_S",
        15: "Q4_K_M",
        16: "Q5_K_S",
        17: "Q5_K_M",
        18: "Q6_K",
        19: "IQ2_XXS",
        20: "IQ2_XS",
        21: "Q2_K_S",
        22: "IQ3_XS",
        23: "IQ3_XXS",
        24: "IQ1_S",
        25: "IQ4_NL",
        26: "IQ3_S",
        27: "IQ3_M",
        28: "IQ2_S",
        29: "IQ2_M",
        30: "IQ4_XS",
        31: "IQ1_M",
        32: "BF16",
        36: "TQ1_0",
        37: "TQ2_0",
        38: "MXFP4_MOE",
        39: "NVFP4",
        40: "Q1_0",
    }
)
