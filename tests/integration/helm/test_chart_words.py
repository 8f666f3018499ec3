"""Values that make no sense are refused, with words that say which and what to do."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest
from tests.helm_chart import PUBLIC, merged, rendered

KEYED = {"keys": {"existingSecret": "stoker-keys"}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"active": "red"}, ["/active", "'blue', 'green'"]),
        ({"activ": "blue"}, ["activ"]),
        ({"slots": {"green": {"enabeld": True}}}, ["/slots/green", "enabeld"]),
        ({"slots": {"yellow": {}}}, ["/slots", "yellow"]),
        ({"replicas": 0}, ["/replicas", "minimum"]),
        ({"image": {"tag": 1.5}}, ["/image/tag", "string"]),
        ({"image": {"digest": "latest"}}, ["/image/digest"]),
        ({"model": {"delivery": "pigeon"}}, ["/model/delivery", "'claim'"]),
        ({"model": {"sha256": "abc"}}, ["/model/sha256"]),
        ({"model": {"settings": {"plan": {"slotz": 4}}}}, ["/model/settings/plan", "slotz"]),
        ({"config": {"queu": {}}}, ["/config", "queu"]),
        ({"config": {"queue": {"max_requests": "many"}}}, ["/config/queue/max_requests", "integer"]),
        ({"config": {"guard": {"mode": "shout"}}}, ["/config/guard/mode", "'block'"]),
        ({"autoscaling": {"minReplicas": 0}}, ["/autoscaling/minReplicas", "minimum"]),
        ({"pdb": {"maxUnavailable": 0}}, ["/pdb/maxUnavailable"]),
        ({"gate": {"set": "smoek"}}, ["/gate/set"]),
        ({"drainSeconds": "30s"}, ["/drainSeconds", "integer"]),
        ({"redis": {"url": "valkey:6379"}}, ["/redis/url"]),
        ({"backup": {"schedule": "daily at three"}}, ["/backup/schedule"]),
        ({"backup": {"retention": {"yearly": 1}}}, ["/backup/retention", "yearly"]),
        ({"service": {"type": "ExternalName"}}, ["/service/type"]),
        ({"nodeSelector": {"ssd": True}}, ["/nodeSelector/ssd", "string"]),
        ({"rollout": {"engine": "flagger"}}, ["/rollout/engine", "'argo'"]),
    ],
)
def test_the_schema_says_where_and_what(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        rendered(merged(PUBLIC, values))
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["no keys", "keys.existingSecret", "keys.allowPublic=true"]),
        (KEYED | {"active": "green"}, ["slots.green.enabled is false", "then switch"]),
        (KEYED | {"model": {"delivery": "claim"}}, ["slots.blue.model", "claim.existing"]),
        (KEYED | {"model": {"delivery": "imageVolume"}}, ["imageVolume.reference"]),
        (KEYED | {"model": {"delivery": "none"}}, ["config.models"]),
        (KEYED | {"redis": {"url": "redis://user:word@host/0"}}, ["redis.existingSecret"]),
        (
            KEYED | {"redis": {"url": "redis://host/0", "existingSecret": {"name": "redis"}}},
            ["redis.url and redis.existingSecret.name"],
        ),
        (KEYED | {"config": {"timeouts": {"shutdown": 5}}}, ["drainSeconds"]),
        (KEYED | {"autoscaling": {"minReplicas": 5}}, ["maxReplicas (4)", "minReplicas (5)"]),
        (KEYED | {"resources": {"requests": {"cpu": None}}}, ["resources.requests.cpu"]),
        (KEYED | {"backup": {"enabled": True}}, ["backup.repository"]),
        (KEYED | {"backup": {"drill": {"enabled": True}}}, ["backup.enabled"]),
        (KEYED | {"ingress": {"enabled": True}}, ["ingress.hosts"]),
        (KEYED | {"httpRoute": {"enabled": True}}, ["httpRoute.parentRefs"]),
    ],
)
def test_what_contradicts_itself_is_refused_with_a_way_out(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        rendered(values)
    for word in words:
        assert word in str(refusal.value)


def test_a_password_is_not_repeated_in_the_refusal() -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        rendered(KEYED | {"redis": {"url": "redis://user:hush@host/0"}})
    assert "hush" not in str(refusal.value)
