"""The OpenAPI page: what the library cannot see by itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

from flask import redirect
from flask_openapi.models import OPENAPI3_REF_PREFIX, OPENAPI3_REF_TEMPLATE
from flask_openapi.models.info import Info
from flask_openapi.models.schema import Schema
from flask_openapi.openapi import OpenAPI
from pydantic import BaseModel
from werkzeug.wrappers import Response

from webapi.bulk_schemas import BatchRequest, BulkChange, BulkParameters, BulkRequest, BulkRetry
from webapi.document import Documented
from webapi.engine_bodies import ChatBody, CompletionBody, EmbeddingBody, ResponseBody
from webapi.errors import PROBLEM, render_invalid
from webapi.openai import ErrorEnvelope
from webapi.schemas import EngineBody, JobRequest, ProblemDocument, without_null
from webapi.webhook_schemas import EndpointChange, EndpointRequest, RedeliverRequest, RotateRequest, TestRequest

BODIES = (
    JobRequest,
    BulkRequest,
    BulkParameters,
    BulkRetry,
    BulkChange,
    BatchRequest,
    EngineBody,
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    ResponseBody,
    ProblemDocument,
    ErrorEnvelope,
    EndpointRequest,
    EndpointChange,
    RotateRequest,
    TestRequest,
    RedeliverRequest,
)
"""What is described though no view declares it: bodies that are read by ours, and errors."""

ABOUT = (
    "Jobs for language models: submit a prompt, poll or wait for its answer, or have it sent to a webhook. "
    "Errors are problem documents (RFC 9457); files and batches, which OpenAI's API has too, have its errors."
)


def new_app(name: str, version: str) -> OpenAPI:
    """Return an application with its documents at /openapi.json and /docs, complete without internet."""
    app = Documented(
        name,
        info=Info(title="stoker", version=version, description=ABOUT),
        doc_prefix="/docs",
        security_schemes={"key": {"type": "http", "scheme": "bearer", "description": "sk-stoker-..."}},
        validation_error_model=ProblemDocument,
        validation_error_callback=render_invalid,
        static_folder=None,
    )
    app.openapi_version = "3.1.0"
    for model in BODIES:
        _add_schema(app, model)
    app.add_url_rule("/openapi.json", "openapi_json", lambda: app.api_doc)
    app.add_url_rule("/docs", "docs", _to_docs)
    return app


def _to_docs() -> Response:
    return redirect("/docs/swagger")


def _add_schema(app: OpenAPI, model: type[BaseModel]) -> None:
    for name, definition in _definitions(model).items():
        app.components_schemas[name] = Schema(**definition)


@cache
def _definitions(model: type[BaseModel]) -> Mapping[str, Any]:
    """Return the schemas of a model and of what it is made of, by name."""
    schema = model.model_json_schema(ref_template=OPENAPI3_REF_TEMPLATE)
    if model is BulkParameters:  # of forms and URLs
        schema = without_null(schema)
    return {**schema.pop("$defs", {}), model.__name__: schema}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a JSON body that the view reads by itself."""
    reference = {"$ref": f"{OPENAPI3_REF_PREFIX}/{model.__name__}"}
    return {"required": True, "content": {"application/json": {"schema": reference}}}


def problems(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """Return the descriptions of error answers."""
    reference = {"$ref": f"{OPENAPI3_REF_PREFIX}/{ProblemDocument.__name__}"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {PROBLEM: {"schema": reference}}}
        for status in statuses
    }
