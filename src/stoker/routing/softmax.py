"""Softmax regression over a kernel matrix, and the small logistic regression that turns its scores into a confidence.

Both minimise a penalised likelihood by Newton's method with a fixed bound on the curvature (Boehning 1992,
"Multinomial logistic regression algorithm"), which needs one inverse and always descends.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stoker.routing.linear import product

Floats = NDArray[np.float32]

STEPS = 80
LOGISTIC_STEPS = 500


def probabilities(logits: Floats) -> Floats:
    """Softmax of each row."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return result


def fit(kernel: Floats, targets: Floats, weights: Floats, penalty: float) -> Floats:
    """Train.

    Args:
        kernel: inner products of the N examples' features, N x N.
        targets: N x C, 1 where an example has the class.
        weights: importance of each example, > 0.
        penalty: of the squared weights, > 0; the inverse of what others call C.

    Returns: coefficients N x C; the weights of the C classes are the features' transpose times these.
    """
    count = len(kernel)
    root = np.sqrt(weights)[:, None]
    scaled = root * kernel * root.T
    inverse = np.linalg.inv(scaled / 2 + penalty * np.eye(count, dtype=np.float32)).astype(np.float32)
    current: Floats = np.zeros_like(targets)
    ahead: Floats = current
    momentum = 1.0
    for _ in range(STEPS):
        # Coefficients are kept divided by the roots of the weights, which makes the weighted problem a plain one.
        chances = probabilities((product(scaled, ahead) / root).astype(np.float32))
        errors = root * (chances - targets)
        following = ahead - product(inverse, (errors + penalty * ahead).astype(np.float32))
        grown = (1 + math.sqrt(1 + 4 * momentum**2)) / 2  # Nesterov 1983
        ahead = (following + (momentum - 1) / grown * (following - current)).astype(np.float32)
        current = following.astype(np.float32)
        momentum = grown
    result: Floats = (root * current).astype(np.float32)
    return result


def fit_logistic(features: Floats, targets: Floats, weights: Floats, prior: Floats, strength: Floats) -> Floats:
    """Logistic regression that is drawn to `prior` with `strength` (its inverse variances).

    Args:
        features: N x F; a column of ones where a constant is wanted.
        targets: N, each 0 or 1.
        weights: N, how much each example counts.
        prior: F, the coefficients that hold without examples.
        strength: F, > 0.
    """
    wide = features.astype(np.float64)
    inverse = np.linalg.inv((wide.T * weights) @ wide / 4 + np.diag(strength).astype(np.float64))
    coefficients = prior.astype(np.float64)
    for _ in range(LOGISTIC_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(wide @ coefficients, -30, 30)))
        errors = weights * (chances - targets)
        coefficients = coefficients - inverse @ (wide.T @ errors + strength * (coefficients - prior))
    return coefficients.astype(np.float32)
