"""The OpenAPI page."""

from __future__ import annotations

import re

from flask.testing import FlaskClient
from openapi_spec_validator import OpenAPIV31SpecValidator


def test_the_document_is_valid(client: FlaskClient) -> None:
    """It is OpenAPI 3.1, describes every call, and errors as problem documents."""
    document = client.get("/openapi.json").json
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {
        "/v1/jobs",
        "/v1/jobs/{job_id}",
        "/v1/jobs/{job_id}/result",
        "/v1/jobs/{job_id}/cancel",
        "/v1/jobs/{job_id}/events",
        "/v1/jobs/{job_id}/timeline",
        "/v1/bulks",
        "/v1/bulks/{bulk_id}",
        "/v1/bulks/{bulk_id}/cancel",
        "/v1/bulks/{bulk_id}/errors",
        "/v1/bulks/{bulk_id}/pause",
        "/v1/bulks/{bulk_id}/results",
        "/v1/bulks/{bulk_id}/resume",
        "/v1/bulks/{bulk_id}/retry",
        "/v1/batches",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
        "/v1/files",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/webhook_endpoints",
        "/v1/webhook_endpoints/{webhook_endpoint_id}",
        "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret",
        "/v1/webhook_endpoints/{webhook_endpoint_id}/test",
        "/v1/webhook_event_types",
        "/v1/usage",
        "/v1/overview",
        "/v1/deliveries",
        "/v1/deliveries/redeliver",
        "/v1/deliveries/{delivery_id}",
        "/v1/deliveries/{delivery_id}/redeliver",
        "/livez",
        "/readyz",
        "/metrics",
    }
    create = document["paths"]["/v1/jobs"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/JobRequest")
    assert "application/problem+json" in create["responses"]["422"]["content"]
    fields = document["components"]["schemas"]["JobRequest"]["properties"]
    assert {"prompt", "messages", "temperature", "lane", "webhook"} <= set(fields)
    lines = document["paths"]["/v1/bulks"]["post"]["requestBody"]["content"]
    assert {"application/json", "application/x-ndjson", "text/csv", "application/gzip", "multipart/form-data"} == set(
        lines
    )
    batch = document["paths"]["/v1/batches"]["post"]["responses"]
    assert batch["400"]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorEnvelope")


def test_headers_are_described(client: FlaskClient) -> None:
    """What every answer has, what an error brings, where the new thing is; and the header that makes a call one."""
    paths = client.get("/openapi.json").json["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            answers = operation["responses"]
            assert all("X-Request-Id" in answer["headers"] for answer in answers.values())
            assert ("429" in answers) == path.startswith("/v1/")
            assert all("Retry-After" in answers[status]["headers"] for status in {"429", "503"} & set(answers))
    create = paths["/v1/jobs"]["post"]
    assert "Location" in create["responses"]["202"]["headers"]
    assert [told["name"] for told in create["parameters"]] == ["Idempotency-Key"]
    assert "409" in paths["/v1/files"]["post"]["responses"]


def test_what_a_call_takes_is_described(client: FlaskClient) -> None:
    """Each endpoint's own body; parameters of a query without a null, which a URL cannot spell."""
    document = client.get("/openapi.json").json
    schemas = document["components"]["schemas"]
    for path, name, field in (
        ("/v1/chat/completions", "ChatBody", "messages"),
        ("/v1/completions", "CompletionBody", "prompt"),
        ("/v1/embeddings", "EmbeddingBody", "input"),
        ("/v1/responses", "ResponseBody", "input"),
    ):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["$ref"].endswith(f"/{name}")
        assert schemas[name]["required"] == [field]
    for operations in document["paths"].values():
        for operation in operations.values():
            for told in operation.get("parameters", []):
                assert {"type": "null"} not in told["schema"].get("anyOf", [])


def test_every_reference_leads_somewhere(client: FlaskClient) -> None:
    """No `$ref` points to a schema that is not there."""
    document = client.get("/openapi.json").json
    named = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert named <= set(document["components"]["schemas"])


def test_the_page_works_without_internet(client: FlaskClient) -> None:
    """/docs leads to Swagger UI, whose parts all come from this server."""
    page = client.get("/docs", follow_redirects=True)
    assert page.status_code == 200
    assert page.request.path == "/docs/swagger"
    parts = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert parts
    for part in parts:
        assert "//" not in part
        with client.get(f"/docs/{part}") as answer:
            assert answer.status_code == 200
    assert client.get("/docs/openapi.json").json == client.get("/openapi.json").json
