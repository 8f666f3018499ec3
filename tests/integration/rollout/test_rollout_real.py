"""Real versions of the real model under streaming load: good ones take over, a bad one is refused, nobody notices."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.rollouts import Rolling, Users, real_versions
from tests.running import Stoker

pytestmark = [pytest.mark.model, pytest.mark.timeout(600)]


def test_good_versions_take_over_and_a_bad_one_is_refused(tmp_path: Path, model_path: Path) -> None:
    settings = real_versions(tmp_path, model_path, bad="3", good=("1", "2"))
    with Stoker(tmp_path, settings) as server:
        rolling = Rolling(server)
        with Users(server.url, clients=2, max_tokens=8) as users:
            good = rolling.until(rolling.start("2", model="smollm2@2", evaluation=None), within_s=250)
            bad = rolling.until(rolling.start("3", model="smollm2@3", evaluation=None), within_s=250)
        assert (good["phase"], bad["phase"]) == ("succeeded", "refused"), (good["reason"], bad["reason"])
        assert users.wrong == []
        assert users.asked > 20
        assert good["evaluation"]["set"] == "smoke"
        assert good["evaluation"]["pass_rate"] == good["evaluation"]["against"]["pass_rate"]
        assert bad["evaluation"]["pass_rate"] < 0.4
        (model,) = httpx.get(f"{server.url}/health").json()["models"]
        assert model["version"] == "2"
        told = httpx.get(f"{server.url}/metrics").text
        assert 'stoker_rollouts_total{outcome="succeeded"} 1' in told
        assert 'stoker_rollouts_total{outcome="refused"} 1' in told
