"""Stoker keeps GPUs fed: the front door, what a user imports or types."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.api_errors import StokerAPIError, WebhookVerificationError
    from stoker.async_client import AsyncClient
    from stoker.client import Client
    from stoker.job_events import Event
    from stoker.resources import Batch, Bulk, Counts, File, Job, Result
    from stoker.webhook_resources import Delivery, WebhookEndpoint
    from stoker.webhook_signature import verify_webhook

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Batch",
    "Bulk",
    "Client",
    "Counts",
    "Delivery",
    "Event",
    "File",
    "Job",
    "Result",
    "StokerAPIError",
    "WebhookEndpoint",
    "WebhookVerificationError",
    "__version__",
    "verify_webhook",
]

_HOMES = {
    "AsyncClient": "stoker.async_client",
    "Client": "stoker.client",
    "Event": "stoker.job_events",
    "StokerAPIError": "stoker.api_errors",
    "Delivery": "stoker.webhook_resources",
    "WebhookEndpoint": "stoker.webhook_resources",
    "WebhookVerificationError": "stoker.api_errors",
    "verify_webhook": "stoker.webhook_signature",
} | dict.fromkeys(("Batch", "Bulk", "Counts", "File", "Job", "Result"), "stoker.resources")


def __getattr__(name: str) -> Any:
    """Import a part of the client when it is first asked for: the service's processes need none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
