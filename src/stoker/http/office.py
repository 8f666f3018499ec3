"""Jobs as this server has them: the desk that takes them in, and the worker that makes their requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from stoker.errors import ConfigError, StartupError
from stoker.http.calls import WireTranslator
from stoker.http.parse import Reader
from stoker.jobs.courier import Courier, webhook_policy
from stoker.jobs.desk import JobDesk
from stoker.jobs.sender import Sender
from stoker.jobs.worker import Worker
from stoker.observability.snapshot import WorkFigures
from stoker.service import Service


@dataclass(frozen=True, slots=True)
class Office:
    """Where jobs go, and who does them."""

    desk: JobDesk
    worker: Worker

    def figures(self) -> WorkFigures:
        """What was done so far."""
        courier = self.worker.courier
        outcomes = courier.outcomes if courier is not None else {}
        deliveries = {str(outcome): count for outcome, count in outcomes.items()}
        return WorkFigures(running=self.worker.running, attempts=dict(self.worker.ended), deliveries=deliveries)


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
    office = Office(desk, worker)
    service.work = office.figures
    return office
