"""The small network of `stoker/routing/vectors.py` in trainable form: forward, backward and Adam, in numpy.

Pieces have vectors; a window of three of them goes through a rectified layer; the vectors and the layer's outputs are
summed over the text and divided by the root of its length; one more rectified layer, beside a straight path, gives the
text's vector. The loss is one minus its cosine to the teacher's.
"""

# ruff: noqa: ANN001, ANN201, ANN202, ANN204, INP001

from __future__ import annotations

import numpy as np
import scipy.sparse

SIZE, WINDOW, HIDDEN, OUT = 128, 256, 320, 320
DECAY, DECAY_SQUARES = 0.9, 0.99
NORM_WEIGHT = 0.02  # keeps the output's length near 1, where the gradient of a cosine is well scaled


def packed(texts):
    """Piece numbers of several texts in one row: numbers, where each text starts, how long it is."""
    lengths = np.array([len(text) for text in texts])
    return np.concatenate(texts).astype(np.int64), np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths


class Network:
    """Weights and their training. `weights` may come from an earlier run."""

    def __init__(self, pieces, weights=None, seed=0):
        random = np.random.default_rng(seed)

        def normal(rows, columns, gain):
            return (random.standard_normal((rows, columns)) * gain * np.sqrt(2 / rows)).astype(np.float32)

        self.weights = weights or {
            "table": normal(pieces, SIZE, 1.0),
            "window": normal(3 * SIZE, WINDOW, 0.7),
            "window_bias": np.zeros(WINDOW, np.float32),
            "hidden": normal(SIZE + WINDOW, HIDDEN, 0.7),
            "hidden_bias": np.zeros(HIDDEN, np.float32),
            "straight": normal(SIZE + WINDOW, OUT, 0.05),
            "out": normal(HIDDEN, OUT, 0.2),
            "out_bias": np.zeros(OUT, np.float32),
        }
        if weights is None:
            self.weights["straight"][:SIZE, :SIZE] += np.eye(SIZE, dtype=np.float32)
        self.mean = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.square = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.steps = 0

    def forward(self, numbers, starts, lengths):
        """The texts' vectors, not yet of length 1, and what `step` needs again."""
        weights, count = self.weights, len(numbers)
        own = weights["table"][numbers]
        first, last = np.zeros(count, bool), np.zeros(count, bool)
        first[starts], last[starts + lengths - 1] = True, True
        around = np.zeros((count, 3 * SIZE), np.float32)
        around[:, SIZE : 2 * SIZE] = own
        around[1:, :SIZE] = own[:-1]
        around[first, :SIZE] = 0
        around[:-1, 2 * SIZE :] = own[1:]
        around[last, 2 * SIZE :] = 0
        seen = np.maximum(around @ weights["window"] + weights["window_bias"], 0)
        scale = (1 / np.sqrt(lengths)).astype(np.float32)[:, None]
        summed = np.hstack([np.add.reduceat(own, starts, 0), np.add.reduceat(seen, starts, 0)]) * scale
        hidden = np.maximum(summed @ weights["hidden"] + weights["hidden_bias"], 0)
        raw = summed @ weights["straight"] + hidden @ weights["out"] + weights["out_bias"]
        return raw, (around, seen, summed, hidden, scale, first, last)

    def step(self, batch, wanted, rate):
        """One step of Adam (Kingma and Ba 2015) on a batch; returns the mean cosine to `wanted`, rows of length 1."""
        numbers, _, lengths = batch
        weights = self.weights
        raw, (around, seen, summed, hidden, scale, first, last) = self.forward(*batch)
        length = np.linalg.norm(raw, axis=1, keepdims=True) + 1e-6
        unit = raw / length
        cosine = (unit * wanted).sum(1, keepdims=True)
        d_raw = (-(wanted - cosine * unit) / length + NORM_WEIGHT * (length - 1) * unit) / len(wanted)
        d_hidden = d_raw @ weights["out"].T
        d_hidden[hidden <= 0] = 0
        d_summed = np.repeat((d_raw @ weights["straight"].T + d_hidden @ weights["hidden"].T) * scale, lengths, 0)
        d_seen = np.ascontiguousarray(d_summed[:, SIZE:])
        d_seen[seen <= 0] = 0
        d_around = d_seen @ weights["window"].T
        d_own = d_summed[:, :SIZE] + d_around[:, SIZE : 2 * SIZE]
        d_own[:-1] += np.where(first[1:, None], 0, d_around[1:, :SIZE])
        d_own[1:] += np.where(last[:-1, None], 0, d_around[:-1, 2 * SIZE :])
        self._update(
            {
                "out": hidden.T @ d_raw,
                "out_bias": d_raw.sum(0),
                "straight": summed.T @ d_raw,
                "hidden": summed.T @ d_hidden,
                "hidden_bias": d_hidden.sum(0),
                "window": around.T @ d_seen,
                "window_bias": d_seen.sum(0),
            },
            *_by_piece(numbers, d_own),
            rate,
        )
        return float(cosine.mean())

    def _update(self, gradients, pieces, table_gradient, rate):
        self.steps += 1
        for name, gradient in gradients.items():
            self._adam(name, slice(None), gradient, rate)
        self._adam("table", pieces, table_gradient, rate)  # of the table only the rows that occurred

    def _adam(self, name, rows, gradient, rate):
        mean = DECAY * self.mean[name][rows] + (1 - DECAY) * gradient
        square = DECAY_SQUARES * self.square[name][rows] + (1 - DECAY_SQUARES) * gradient**2
        self.mean[name][rows], self.square[name][rows] = mean, square
        corrected = np.sqrt(square / (1 - DECAY_SQUARES**self.steps)) + 1e-8
        self.weights[name][rows] -= rate * mean / (1 - DECAY**self.steps) / corrected


def _by_piece(numbers, gradient):
    """The gradient summed over the places of each piece."""
    pieces, places = np.unique(numbers, return_inverse=True)
    ones = np.ones(len(numbers), np.float32)
    where = scipy.sparse.csr_matrix((ones, (places, np.arange(len(numbers)))), shape=(len(pieces), len(numbers)))
    return pieces, where @ gradient
