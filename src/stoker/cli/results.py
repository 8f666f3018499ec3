"""The output of `stoker batch`: OpenAI's batch output form, one row a line, appended as jobs end.

`{"id", "custom_id", "response": {"status_code", "request_id", "body"} | null, "error": {"code", "message"} | null,
"job"}`. `id` ends with the fingerprint of what was asked, so that a changed line is not taken for an answered one. A
later row stands for an earlier one of the same custom_id until the file is made compact.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final, Self

import orjson

from stoker.cli.client import Refused
from stoker.errors import ConfigError, RequestError, StokerError

ENDINGS: Final = {"failed": "failed", "cancelled": "was cancelled", "expired": "expired"}
"""How jobs end that have no answer, in words."""
ID: Final = "batch_req_"
START: Final = b'{"id":"batch_req_'
"""Of every row: what may be cut off when a row ends in the middle."""


@dataclass(frozen=True, slots=True)
class Done:
    """What is known of an answered line: what was asked, whether it went well, the job (None when it was refused)."""

    fingerprint: str
    ok: bool
    job: str | None


class Results:
    """An output file that this process alone writes, for use in `with`; `done` is by custom_id.

    Raises:
        ConfigError: the file cannot be written, holds something else, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Done] = {}
        self._doubles = False

    def __enter__(self) -> Self:
        if self.path.exists() and not self.path.is_file():
            raise ConfigError(f"{self.path}: must be a file, so that a later start can go on from it")
        try:
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written ({error.strerror})") from None
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def add(self, custom_id: str, fingerprint: str, outcome: Mapping[str, Any]) -> Done:
        """Append the row of an ended line, whole or not at all; `outcome` is its `response`, `error` and `job`.

        Raises:
            StokerError: the disk does not take it.
        """
        row = {"id": ID + fingerprint, "custom_id": custom_id, **outcome}
        try:
            self._file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        except OSError as error:
            raise StokerError(f"{self.path}: cannot be written ({error.strerror})") from None
        return self._note(row)

    def settle(self) -> None:
        """Leave the file on the disk, with one row for each custom_id; raises StokerError when that fails."""
        try:
            if self._doubles:
                self._compact()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StokerError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{self.path}: another `stoker batch` writes it; let it end, or name another") from None

    def _read(self) -> None:
        """Take in the rows that are there, and cut off the half one that a killed process may have left."""
        end = 0
        for number, raw in enumerate(self._rows(), 1):
            row = _parsed(raw) if raw.endswith(b"\n") else None
            if row is not None:
                end += len(raw)
                self._note(row)
            elif raw.endswith(b"\n") or not (raw.startswith(START) or START.startswith(raw)):
                raise ConfigError(f"{self.path}:{number}: is no row of `stoker batch`; name another file with --out")
        self._file.truncate(end)

    def _rows(self) -> Iterator[bytes]:
        self._file.seek(0)
        yield from self._file

    def _note(self, row: Mapping[str, Any]) -> Done:
        response = row.get("response")
        ok = isinstance(response, dict) and response.get("status_code") == HTTPStatus.OK and not row.get("error")
        done = Done(str(row["id"]).removeprefix(ID), ok, row.get("job"))
        self._doubles = self._doubles or row["custom_id"] in self.done
        self.done[row["custom_id"]] = done
        return done

    def _compact(self) -> None:
        """Write the last row of each custom_id beside the file, and put that in its place."""
        last: dict[str, int] = {}
        for number, raw in enumerate(self._rows()):
            last[orjson.loads(raw)["custom_id"]] = number
        keep = set(last.values())
        beside = self.path.with_name(f"{self.path.name}.new")
        with beside.open("wb") as file:
            file.writelines(raw for number, raw in enumerate(self._rows()) if number in keep)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self._file.close()
        self._file = self.path.open("a+b")
        self._doubles = False


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A row; None when it is none."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("custom_id"), str) and isinstance(row.get("id"), str)
    return row if whole else None


def outcome_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """`response`, `error` and `job` for a job that has ended."""
    error = job.get("error") or {}
    if job["state"] == "succeeded":
        return _answered(HTTPStatus.OK, job["id"], job.get("result"), job["id"])
    if job["state"] == "failed" and error.get("status"):
        body = {"error": {name: error.get(name) for name in ("message", "type", "param", "code")}}
        return _answered(error["status"], job["id"], body, job["id"])
    code = error.get("code") or f"job_{job['state']}"
    message = error.get("message") or f"the job {ENDINGS[job['state']]} before it had an answer"
    return {"response": None, "error": {"code": code, "message": message}, "job": job["id"]}


def refusal(error: Refused) -> dict[str, Any]:
    """`response`, `error` and `job` for a line that never became a job."""
    kind = error.type or (RequestError.type if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else StokerError.type)
    said = {"message": error.detail or error.message, "type": kind, "param": error.param, "code": error.code}
    return _answered(error.status, None, {"error": said}, None)


def reason_of(outcome: Mapping[str, Any]) -> str:
    """Why a line failed, in words."""
    error = outcome["error"] or outcome["response"]["body"]["error"]
    return str(error.get("message") or error.get("code"))


def _answered(status: int, request_id: str | None, body: Any, job: str | None) -> dict[str, Any]:
    response = {"status_code": int(status), "request_id": request_id, "body": body}
    return {"response": response, "error": None, "job": job}
