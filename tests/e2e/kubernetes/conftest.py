"""A cluster, an image in it, and a release that the tests of a file share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster import Cluster, NoCluster, build_image, find_cluster, namespace_of, stop_cluster, was_running
from tests.cluster_release import CHART, Release, installed, small_values, start_loader
from tests.containers import find_docker


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster; what the tests started they stop, unless STOKER_KEEP_CLUSTER is set. Skipped without one."""
    if not CHART.is_dir():
        pytest.skip("the chart is not in this checkout")
    running_before = was_running()
    try:
        found = find_cluster()
    except NoCluster as error:
        pytest.skip(str(error))
    yield found
    if not running_before and not os.environ.get("STOKER_KEEP_CLUSTER"):
        stop_cluster(found)


@pytest.fixture(scope="session")
def image(cluster: Cluster, model_path: Path) -> str:
    """The product's image with three models in it, in the cluster; its name there."""
    docker = find_docker()
    return cluster.bring(docker, build_image(docker, model_path))


@pytest.fixture(scope="session")
def namespace(cluster: Cluster, image: str) -> Iterator[str]:
    """A namespace that admits only restricted pods, with a pod in it from which load comes."""
    with namespace_of(cluster, "stoker-e2e") as name:
        start_loader(cluster, name, image)
        yield name


@pytest.fixture(scope="module")
def release(cluster: Cluster, namespace: str, image: str) -> Iterator[Release]:
    """The chart with one pod of the real model in the slot blue, ready, and none in green."""
    with installed(cluster, namespace, small_values(image)) as running:
        yield running
