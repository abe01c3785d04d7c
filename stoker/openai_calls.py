"""The requests of OpenAI's files and batches: what each is sent as, and what its answer is read as. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoker.calls import UPLOAD_TIMEOUT, given, keyed, many, nothing, one, part
from stoker.resources import Batch, File
from stoker.steps import Call
from stoker.transfers import Download, Source, multipart, upload_of


def upload_file(source: Source, purpose: str, on_progress: Any = None) -> Call[File]:
    """Upload a file: sent again it makes no second one."""
    upload = multipart(upload_of(source), {"purpose": purpose}).told(on_progress)
    options = {"headers": keyed(None), "timeout": UPLOAD_TIMEOUT}
    return Call("POST", "/v1/files", one(File), options, repeatable=True, upload=upload)


def get_file(file_id: str) -> Call[File]:
    """Look at a file."""
    return Call("GET", _path("files", file_id), one(File), repeatable=True)


def files(filters: Mapping[str, Any]) -> Call[list[File]]:
    """List files."""
    return Call("GET", "/v1/files", many(File), {"params": given(filters)}, repeatable=True)


def delete_file(file_id: str) -> Call[None]:
    """Delete a file."""
    return Call("DELETE", _path("files", file_id), nothing)


def download_file(file_id: str, to: Download) -> Call[None]:
    """Download a file."""
    path = f"{_path('files', file_id)}/content"
    return Call("GET", path, nothing, {"timeout": UPLOAD_TIMEOUT}, repeatable=True, download=to)


def batch(params: Mapping[str, Any], key: str | None) -> Call[Batch]:
    """Start a batch of an uploaded file."""
    options = {"json": given(params), "headers": keyed(key)}
    return Call("POST", "/v1/batches", one(Batch), options, repeatable=True)


def get_batch(batch_id: str) -> Call[Batch]:
    """Look at a batch."""
    return Call("GET", _path("batches", batch_id), one(Batch), repeatable=True)


def batches(filters: Mapping[str, Any]) -> Call[list[Batch]]:
    """List batches."""
    return Call("GET", "/v1/batches", many(Batch), {"params": given(filters)}, repeatable=True)


def cancel_batch(batch_id: str) -> Call[Batch]:
    """Cancel a batch: twice is the same as once."""
    return Call("POST", f"{_path('batches', batch_id)}/cancel", one(Batch), repeatable=True)


def _path(kind: str, name: str) -> str:
    return f"/v1/{kind}/{part(name)}"
