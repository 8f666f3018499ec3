"""`kill -9` of gateways and engines under jobs, in the whole program: none that was accepted is lost or ends twice."""

from __future__ import annotations

import random
import socket
import time
from pathlib import Path

import pytest
from tests.job_gateways import Gateway, Submitter, faults
from tests.redis_server import RedisProcess

KILLS = 6


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_no_accepted_job_is_lost_or_recorded_twice(tmp_path: Path, model_path: Path, kind: str) -> None:
    with RedisProcess() as redis:
        store = {"store": {"redis": redis.url}} if kind == "redis" else {}
        gateway = Gateway(tmp_path / "gateway", free_port(), model_path, store)
        gateway.start()
        submitter = Submitter([gateway.url], pause=0.01)
        submitter.thread.start()
        try:
            for number in range(KILLS):
                time.sleep(random.uniform(0.1, 0.6))
                if number % 2:
                    gateway.kill_engine()
                else:
                    gateway.kill()
                    gateway.start()
            submitter.stop()
            assert len(submitter.accepted) > KILLS
            assert not submitter.twice
            assert faults(gateway.url, submitter.accepted, [gateway]) == []
        finally:
            submitter.stop()
            gateway.stop()


def test_two_gateways_share_jobs_and_one_dies(tmp_path: Path, model_path: Path) -> None:
    with RedisProcess() as redis:
        gateways = [
            Gateway(tmp_path / name, free_port(), model_path, {"store": {"redis": redis.url}}) for name in ("a", "b")
        ]
        for gateway in gateways:
            gateway.start()
        submitter = Submitter([gateway.url for gateway in gateways], most=100)
        submitter.thread.start()
        try:
            while len(submitter.accepted) < 50:
                time.sleep(0.01)
            gateways[0].kill()
            submitter.thread.join(60)
            assert len(submitter.accepted) == 100
            assert faults(gateways[1].url, submitter.accepted, gateways) == []
            done = [gateway.recorded().total() for gateway in gateways]
            assert all(done), done
        finally:
            submitter.stop()
            for gateway in gateways:
                gateway.stop()
