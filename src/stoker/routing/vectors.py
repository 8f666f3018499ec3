"""Meaning as a vector: a small network, shipped with the package, that imitates a large multilingual sentence encoder.

English and Russian sentences that mean the same lie close together, so that English examples teach Russian routing.
`training/routing_vectors.py` makes the file; NOTICE beside it names the model that was imitated and its licence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoker.routing.linear import Wide
from stoker.routing.pieces import Pieces, normalised

Vector = NDArray[np.float32]
DATA = "vectors.npz"
MOST_PIECES = 400
"""Pieces of one text that are looked at; some 1,500 characters."""


class Encoder:
    """The network: pieces, a window of three, a sum over the text, one hidden layer.

    Thread-safe: nothing changes after construction but the memory of cut words.
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        vocabulary = bytes(weights["vocabulary"]).decode().split("\n")
        scores = np.asarray(weights["scores"], np.float32)
        self._pieces = Pieces(dict(zip(vocabulary, scores.tolist(), strict=True)))
        scale = np.asarray(weights["scale"], np.float32)
        self._table: Vector = np.asarray(weights["table"], np.float32) * scale[:, None]
        self._window = Wide(np.asarray(weights["window"], np.float32))
        names = ("window_bias", "hidden", "hidden_bias", "straight", "out", "out_bias")
        self._layers: tuple[Vector, ...] = tuple(np.asarray(weights[name], np.float32) for name in names)

    @property
    def width(self) -> int:
        """Elements of a vector."""
        return int(self._layers[-1].shape[0])

    def encode(self, text: str) -> Vector:
        """The vector of a normalised text, of length 1; zeros where no letter of it is known."""
        pieces = self._pieces.cut(text)[:MOST_PIECES]
        if not pieces:
            return np.zeros(self.width, np.float32)
        window_bias, hidden, hidden_bias, straight, out, out_bias = self._layers
        count, size = len(pieces), self._table.shape[1]
        around = np.zeros((count, 3 * size), np.float32)
        around[:, size : 2 * size] = self._table[pieces]
        around[1:, :size] = around[:-1, size : 2 * size]
        around[:-1, 2 * size :] = around[1:, size : 2 * size]
        seen = np.maximum(self._window.after(around) + window_bias, 0)
        summed: Vector = np.concatenate((around[:, size : 2 * size].sum(0), seen.sum(0))) / np.sqrt(np.float32(count))
        raw: Vector = summed @ straight + np.maximum(summed @ hidden + hidden_bias, 0) @ out + out_bias
        length = float(np.sqrt(raw @ raw))
        return raw / np.float32(length) if length > 0 else raw

    def encode_all(self, texts: Sequence[str]) -> Vector:
        """The vectors of several texts that need not be normalised yet, one a row."""
        if not texts:
            return np.zeros((0, self.width), np.float32)
        return np.stack([self.encode(normalised(text)) for text in texts])


@cache
def shipped() -> Encoder:
    """The encoder that comes with the package, read once."""
    with (files("stoker.routing") / DATA).open("rb") as file, np.load(file, allow_pickle=False) as weights:
        return Encoder(weights)
