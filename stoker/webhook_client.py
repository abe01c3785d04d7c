"""The parts of a client that are about webhooks: endpoints, and the log of deliveries; blocking and awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from stoker import webhook_calls
from stoker.steps import Call
from stoker.webhook_resources import Delivery, Redelivered, WebhookEndpoint

T = TypeVar("T")
MOST_NAME = 255


class Caller(Protocol):
    """Sends a request, and returns what its answer is read as."""

    def __call__(self, call: Call[T], /) -> T: ...  # noqa: D102  # the class says it


class AsyncCaller(Protocol):
    """The same, awaited."""

    def __call__(self, call: Call[T], /) -> Awaitable[T]: ...  # noqa: D102  # the class says it


class WebhookEndpoints:
    """Where you want to be told of events: `client.webhook_endpoints`."""

    def __init__(self, call: Caller) -> None:
        self._call = call

    def create(
        self, url: str, event_types: Sequence[str], *, name: str = "", idempotency_key: str | None = None, **params: Any
    ) -> WebhookEndpoint:
        """Make an endpoint; its `signing_secret` is in this answer alone. `params`: include_result, coalesce, enabled.

        Without a name it is named by its URL.
        """
        asked = {"name": name or url[:MOST_NAME], "url": url, "event_types": [*event_types], **params}
        return self._call(webhook_calls.create(asked, idempotency_key))

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        """Return an endpoint as it is now."""
        return self._call(webhook_calls.endpoint(endpoint_id))

    def list(self, **filters: Any) -> Sequence[WebhookEndpoint]:
        """Return a page of endpoints, newest first; filters: limit, after."""
        return self._call(webhook_calls.endpoints(filters))

    def event_types(self) -> Sequence[str]:
        """Return the events that an endpoint can be told of."""
        return self._call(webhook_calls.event_types())

    def update(self, endpoint_id: str, **changes: Any) -> WebhookEndpoint:
        """Change an endpoint: name, url, event_types, include_result, coalesce (None: no more), enabled."""
        return self._call(webhook_calls.update(endpoint_id, changes))

    def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint; what is still on its way to it is not sent any more."""
        self._call(webhook_calls.delete(endpoint_id))

    def rotate(self, endpoint_id: str, *, keep_old: bool = False) -> WebhookEndpoint:
        """Change the signing secret, and return it; with `keep_old` both sign for a day."""
        return self._call(webhook_calls.rotate(endpoint_id, keep_old=keep_old))

    def test(self, endpoint_id: str, event_type: str) -> int:
        """Send a sample event, and return the receiver's status. Raises StokerAPIError (502) without one."""
        return self._call(webhook_calls.test(endpoint_id, event_type))


class Deliveries:
    """What became of each webhook event: `client.deliveries`."""

    def __init__(self, call: Caller) -> None:
        self._call = call

    def list(self, **filters: Any) -> Sequence[Delivery]:
        """Return a page of deliveries, newest first; filters: limit, after, state, event, endpoint_id, job_id."""
        return self._call(webhook_calls.deliveries(filters))

    def get(self, delivery_id: str) -> Delivery:
        """Return a delivery as it is now, with its tries."""
        return self._call(webhook_calls.delivery(delivery_id))

    def redeliver(self, delivery_id: str) -> Delivery:
        """Send one that has ended once more, with the same id. Raises StokerAPIError (409) while it is on its way."""
        return self._call(webhook_calls.redeliver(delivery_id))

    def redeliver_many(self, **filters: Any) -> Redelivered:
        """Send many once more, at most 10,000 a call.

        Filters: state (failed if not given), endpoint_id, event, created_after, created_before, after.
        """
        return self._call(webhook_calls.redeliver_many(filters))


class AsyncWebhookEndpoints:
    """The same as WebhookEndpoints, awaited."""

    def __init__(self, call: AsyncCaller) -> None:
        self._call = call

    async def create(
        self, url: str, event_types: Sequence[str], *, name: str = "", idempotency_key: str | None = None, **params: Any
    ) -> WebhookEndpoint:
        """Make an endpoint; its `signing_secret` is in this answer alone. `params`: include_result, coalesce, enabled.

        Without a name it is named by its URL.
        """
        asked = {"name": name or url[:MOST_NAME], "url": url, "event_types": [*event_types], **params}
        return await self._call(webhook_calls.create(asked, idempotency_key))

    async def get(self, endpoint_id: str) -> WebhookEndpoint:
        """Return an endpoint as it is now."""
        return await self._call(webhook_calls.endpoint(endpoint_id))

    async def list(self, **filters: Any) -> Sequence[WebhookEndpoint]:
        """Return a page of endpoints, newest first; filters: limit, after."""
        return await self._call(webhook_calls.endpoints(filters))

    async def event_types(self) -> Sequence[str]:
        """Return the events that an endpoint can be told of."""
        return await self._call(webhook_calls.event_types())

    async def update(self, endpoint_id: str, **changes: Any) -> WebhookEndpoint:
        """Change an endpoint: name, url, event_types, include_result, coalesce (None: no more), enabled."""
        return await self._call(webhook_calls.update(endpoint_id, changes))

    async def delete(self, endpoint_id: str) -> None:
        """Delete an endpoint; what is still on its way to it is not sent any more."""
        await self._call(webhook_calls.delete(endpoint_id))

    async def rotate(self, endpoint_id: str, *, keep_old: bool = False) -> WebhookEndpoint:
        """Change the signing secret, and return it; with `keep_old` both sign for a day."""
        return await self._call(webhook_calls.rotate(endpoint_id, keep_old=keep_old))

    async def test(self, endpoint_id: str, event_type: str) -> int:
        """Send a sample event, and return the receiver's status. Raises StokerAPIError (502) without one."""
        return await self._call(webhook_calls.test(endpoint_id, event_type))


class AsyncDeliveries:
    """The same as Deliveries, awaited."""

    def __init__(self, call: AsyncCaller) -> None:
        self._call = call

    async def list(self, **filters: Any) -> Sequence[Delivery]:
        """Return a page of deliveries, newest first; filters: limit, after, state, event, endpoint_id, job_id."""
        return await self._call(webhook_calls.deliveries(filters))

    async def get(self, delivery_id: str) -> Delivery:
        """Return a delivery as it is now, with its tries."""
        return await self._call(webhook_calls.delivery(delivery_id))

    async def redeliver(self, delivery_id: str) -> Delivery:
        """Send one that has ended once more, with the same id. Raises StokerAPIError (409) while it is on its way."""
        return await self._call(webhook_calls.redeliver(delivery_id))

    async def redeliver_many(self, **filters: Any) -> Redelivered:
        """Send many once more, at most 10,000 a call.

        Filters: state (failed if not given), endpoint_id, event, created_after, created_before, after.
        """
        return await self._call(webhook_calls.redeliver_many(filters))
