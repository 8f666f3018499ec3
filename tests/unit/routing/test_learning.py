"""The regressions under the classifier: they find what scikit-learn's optimum would be, checked by their gradients."""

import numpy as np
import pytest

from stoker.routing.confidence import PRIOR, Confidence, Signs
from stoker.routing.linear import ALONE, Wide, product
from stoker.routing.softmax import fit, fit_logistic, probabilities


def problem(count=60, width=12, classes=3):
    random = np.random.default_rng(7)
    features = random.standard_normal((count, width)).astype(np.float32)
    labels = (features[:, :classes] + random.standard_normal((count, classes)) / 2).argmax(1)
    return features, np.eye(classes, dtype=np.float32)[labels]


def test_the_fit_is_where_the_gradient_vanishes():
    features, targets = problem()
    weights = np.linspace(0.2, 2, len(features), dtype=np.float32)
    found = features.T @ fit(features @ features.T, targets, weights, 0.1)
    errors = weights[:, None] * (probabilities(features @ found) - targets)
    assert np.abs(features.T @ errors + 0.1 * found).max() < 0.02


def test_probabilities_do_not_overflow():
    rows = probabilities(np.array([[1000.0, 0.0], [-1000.0, -1000.0]], np.float32))
    assert rows == pytest.approx(np.array([[1, 0], [0.5, 0.5]]))


def test_without_examples_the_prior_holds():
    features = np.zeros((0, 2), np.float32)
    prior = np.array([0.5, -1], np.float32)
    assert fit_logistic(
        features, np.zeros(0, np.float32), np.zeros(0, np.float32), prior, np.ones(2, np.float32)
    ) == pytest.approx(prior)


def test_many_examples_overrule_the_prior():
    features = np.ones((1000, 1), np.float32)
    targets = (np.arange(1000) < 900).astype(np.float32)
    found = fit_logistic(
        features, targets, np.ones(1000, np.float32), np.array([-3], np.float32), np.ones(1, np.float32)
    )
    assert 1 / (1 + np.exp(-found[0])) == pytest.approx(0.9, abs=0.01)


def test_confidence_is_calibrated_on_what_it_saw():
    random = np.random.default_rng(3)
    signs = [Signs(chance, 0.5, 0.2) for chance in random.uniform(0.05, 0.95, 2000)]
    right = [random.uniform() < sign.chance**2 for sign in signs]
    confidence = Confidence(signs, right, [1.0] * len(signs))
    high = [index for index, sign in enumerate(signs) if sign.chance > 0.8]
    assert np.mean([confidence(signs[index]) for index in high]) == pytest.approx(
        np.mean([right[index] for index in high]), abs=0.05
    )


def test_untrained_confidence_grows_with_likeness():
    confidence = Confidence((), (), ())
    assert PRIOR[2] > 0 > PRIOR[3]
    assert confidence(Signs(0.9, 0.8, 0.1)) > 0.6 > confidence(Signs(0.5, 0.1, 0.6))


@pytest.mark.parametrize("rows", [0, 1, 7, 3 * ALONE // 384])
def test_products_in_pieces_are_the_product(rows):
    random = np.random.default_rng(1)
    left = random.standard_normal((rows, 384)).astype(np.float32)
    right = random.standard_normal((384, 40)).astype(np.float32)
    assert product(left, right) == pytest.approx(left @ right, abs=1e-3)
    assert Wide(right).after(left) == pytest.approx(left @ right, abs=1e-3)
