"""Jobs as this server has them: the desk that takes them in, batches of them, and the worker that does them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import get_args

from stoker.errors import ConfigError, StartupError
from stoker.http.calls import WireTranslator
from stoker.http.parse import Reader
from stoker.jobs.batches import Batches
from stoker.jobs.courier import Courier, webhook_policy
from stoker.jobs.desk import JobDesk
from stoker.jobs.files import FileStore
from stoker.jobs.sender import Sender
from stoker.jobs.steadily import report
from stoker.jobs.webhooks import Outcome
from stoker.jobs.worker import Worker
from stoker.observability.logging import get_logger
from stoker.observability.snapshot import WorkFigures
from stoker.service import Service
from stoker.store.protocols import StoreError

MIB = 1 << 20
ATTEMPTS = ("succeeded", "failed", "cancelled", "retried", "released", "lost", "expired")
"""Outcomes that are told from the start, for a rate of what has not happened so far is 0, not unknown."""
_log = get_logger("jobs")


@dataclass(frozen=True, slots=True)
class Office:
    """Where jobs go, and who does them. `batches` is None where there is no place for files."""

    desk: JobDesk
    worker: Worker
    batches: Batches | None = None

    async def run(self) -> None:
        """Work until `stop` is done."""
        gathering = asyncio.create_task(self.batches.run(), name="batches") if self.batches is not None else None
        if gathering is not None:
            gathering.add_done_callback(report)
        try:
            await self.worker.run()
        finally:
            if gathering is not None and self.batches is not None:
                gathering.cancel()
                await asyncio.gather(gathering, return_exceptions=True)
                self.batches.files.close()

    async def stop(self, grace: float) -> None:
        """Take in and take up no more, and give back what cannot be finished within `grace` seconds."""
        self.desk.close()
        await self.worker.stop(grace)

    def figures(self) -> WorkFigures:
        """What was done so far."""
        courier = self.worker.courier
        delivered = courier.outcomes if courier is not None else {}
        return WorkFigures(
            running=self.worker.running,
            attempts=dict.fromkeys(ATTEMPTS, 0) | self.worker.ended,
            deliveries={outcome: delivered.get(outcome, 0) for outcome in get_args(Outcome)},
        )


async def open_office(service: Service) -> Office | None:
    """The office of a service; None where it has no job log.

    Raises StartupError when what is configured about webhooks makes no sense.
    """
    log, config = service.job_log, service.settings.jobs
    if log is None:
        return None
    translator = WireTranslator(service.pipeline, Reader(service.settings))
    try:
        policy = webhook_policy(config.webhooks) if config.webhooks.secrets else None
    except ConfigError as error:
        raise StartupError(error.message) from None
    courier = None
    if policy is not None:
        sender = await asyncio.to_thread(Sender, policy)  # reads the system's certificates
        courier = Courier(log, sender, policy)
    worker = Worker(
        log,
        translator,
        config,
        service.observer,
        slots=lambda: sum(pool.slots for pool in service.pools.values()),
        courier=courier,
        run_s=service.settings.timeouts.request_max,
    )
    desk = JobDesk(log, service.pipeline, translator, config, policy, cancelling=worker.look_at)
    office = Office(desk, worker, await _open_batches(service, desk))
    service.state.work = office.figures
    return office


async def _open_batches(service: Service, desk: JobDesk) -> Batches | None:
    """Batches, if there is a place for their files; without one jobs go on."""
    settings = service.settings
    config = settings.jobs
    directory = config.files_dir or settings.data_dir / "files"
    files = FileStore(directory, file_octets=config.file_mib * MIB, total_octets=config.files_mib * MIB)
    try:
        await files.open()
    except StoreError as error:
        service.state.batches_trouble = f"batches are off: {error.message}"
        _log.error("no place for files", reason=error.message)
        return None
    return Batches(files, desk, config, body_octets=settings.limits.body_bytes, observer=service.observer)
