"""The routes /v1/files: what batches read, and what they wrote."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from stoker.errors import PayloadTooLarge, RequestError, Unsupported
from stoker.http import answers, schemas
from stoker.http.docs import refusals
from stoker.http.gateway import Gateway
from stoker.http.jobs import SCOPE
from stoker.http.params import among, described, whole
from stoker.http.parse import read_body
from stoker.http.uploads import Form, receive_form
from stoker.jobs.batches import Batches
from stoker.jobs.files import KEEP_S, MAX_FILES, StoredFile

FORM_OCTETS: Final = 64 * 1024
"""Bytes that a form has beside its file, at the most."""
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "file": {"type": "string", "format": "binary"},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}
_PARAMETERS: Final = described(
    ("purpose", "string", "only files of this purpose: batch, batch_output"),
    ("limit", "integer", f"files of one page, 1 to {MAX_FILES}; all unless it is said"),
    ("order", "string", "desc, the newest first, unless it is asc"),
    ("after", "string", "the id of the last file of the page before"),
)


def router(gateway: Gateway, batches: Batches) -> APIRouter:
    """The routes /v1/files and below."""
    routes = APIRouter(prefix="/v1/files", tags=["OpenAI"])
    files = batches.files

    @routes.post("", summary="Upload a file", response_model=answers.File, responses=refusals(), openapi_extra=_BODY)
    async def upload(request: Request) -> Response:
        tenant = gateway.caller(request, SCOPE).principal.tenant
        _check_length(request, files.file_octets)
        async with files.uploading(tenant) as writing:
            form = await receive_form(request, writing, gateway.settings.timeouts.body)
            keep_s = _check_form(form)
            return _json(file_object(await files.keep(writing, form.filename or "", "batch", keep_s)))

    @routes.get(
        "", summary="List files", response_model=answers.FileList, responses=refusals(), openapi_extra=_PARAMETERS
    )
    async def list_files(request: Request) -> Response:
        tenant = gateway.caller(request, SCOPE).principal.tenant
        found, more = await files.page(
            tenant,
            purpose=request.query_params.get("purpose"),
            after=request.query_params.get("after"),
            limit=whole(request, "limit", MAX_FILES, 1, MAX_FILES),
            newest_first=among(request, "order", ("asc", "desc")) != ["asc"],
        )
        return _json(page_object([file_object(file) for file in found], more=more))

    @routes.get("/{file_id}", summary="Show a file", response_model=answers.File, responses=refusals())
    async def show(request: Request, file_id: str) -> Response:
        tenant = gateway.caller(request, SCOPE).principal.tenant
        return _json(file_object(await files.get(tenant, file_id)))

    @routes.get("/{file_id}/content", summary="Download a file", response_class=StreamingResponse, responses=refusals())
    async def content(request: Request, file_id: str) -> Response:
        tenant = gateway.caller(request, SCOPE).principal.tenant
        file = await files.get(tenant, file_id)
        # What a caller sent is not for a browser to make sense of.
        headers = {
            "content-length": str(file.octets),
            "content-disposition": f'attachment; filename="{file.id}.jsonl"',
            "x-content-type-options": "nosniff",
        }
        return _Download(files.pieces(tenant, file_id), headers)

    @routes.delete("/{file_id}", summary="Delete a file", response_model=answers.Deleted, responses=refusals())
    async def delete(request: Request, file_id: str) -> Response:
        await batches.delete_file(gateway.caller(request, SCOPE).principal.tenant, file_id)
        return _json({"id": file_id, "object": "file", "deleted": True})

    return routes


class _Download(StreamingResponse):
    """A file's bytes; it is closed with the response."""

    def __init__(self, pieces: AsyncGenerator[bytes], headers: dict[str, str]) -> None:
        super().__init__(pieces, headers=headers, media_type="application/octet-stream")
        self._pieces = pieces

    async def __call__(self, *arguments: Any) -> None:
        """Send the bytes."""
        async with contextlib.aclosing(self._pieces):
            await super().__call__(*arguments)


def file_object(file: StoredFile) -> dict[str, Any]:
    """OpenAI's object `file`."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.octets,
        "created_at": int(file.created),
        "expires_at": int(file.expires),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def page_object(data: list[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """OpenAI's list, of which the last object's id is the next page's `after`."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "has_more": more, "first_id": first, "last_id": last}


def _check_length(request: Request, most: int) -> None:
    """Refuse a file that says beforehand that it is too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most + FORM_OCTETS:
        raise PayloadTooLarge(f"the file has more than the {most} bytes that this server takes; split it")


def _check_form(form: Form) -> float:
    """Whether the form is what it must be; for how many seconds the file is to be kept."""
    if form.filename is None:
        raise RequestError("file: is missing; send the file as the part `file`", param="file")
    purpose = form.fields.get("purpose", "")
    if purpose != "batch":
        raise Unsupported(
            f"purpose: {purpose[:32]!r} is not offered; this server keeps files for `batch`", param="purpose"
        )
    given = {name: form.fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds")}
    if not any(given.values()):
        return KEEP_S
    said = {"anchor": given["anchor"], "seconds": _number(given["seconds"] or "")}
    return read_body(schemas.ExpiresAfter, orjson.dumps(said)).seconds


def _number(text: str) -> int | str:
    """A number of a form, which knows only text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(2**31)) else text


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
