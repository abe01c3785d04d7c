"""`stoker webhooks ...`: where events go, what became of them, and how they are sent once more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stoker.cli_http import AfterOption, LimitOption, duration, print_json, print_table, service
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, fail, say, words

if TYPE_CHECKING:
    from stoker.client import Client
    from stoker.webhook_resources import Delivery, WebhookEndpoint

app = typer.Typer(help="Webhook endpoints, and the log of what was sent to them.", no_args_is_help=True)

DeliveryState = Literal["pending", "sending", "delivered", "failed"]
Redelivered = Literal["failed", "delivered"]
_ENDS = {
    "job": ("succeeded", "failed", "cancelled", "expired"),
    "bulk": ("completed", "failed", "cancelled", "expired"),
    "batch": ("completed", "failed", "cancelled", "expired"),
    "response": ("completed", "failed", "cancelled", "incomplete"),
}
EVENTS = words(*(f"{kind}.{end}" for kind, ends in _ENDS.items() for end in ends))
_FOUND = "id=$(stoker webhooks list --limit 1 --json | jq -r '.[0].id')"
"""How examples come to the id of an endpoint."""

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The endpoint's id.")]
EndpointOption = Annotated[str | None, typer.Option(metavar="ID", help="Only those to this endpoint.")]
EventOption = Annotated[
    str | None, typer.Option(metavar="EVENT", help="Only this event, as job.failed.", autocompletion=EVENTS)
]


@app.command(name="list", epilog=examples("stoker webhooks list"))
def list_(
    *,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List endpoints, newest first."""
    with service(url, api_key) as client:
        found = client.webhook_endpoints.list(limit=limit, after=after)
    if as_json:
        print_json(list(found))
    else:
        print_table(
            [(one.id, _health(one), one.url, ",".join(one.event_types)) for one in found],
            empty="there are no endpoints",
        )


@app.command(
    epilog=examples("stoker webhooks create https://example.com/hook --event job.succeeded --event job.failed")
)
def create(
    to: Annotated[str, typer.Argument(metavar="WEBHOOK_URL", help="Where events go.")],
    *,
    event: Annotated[
        list[str], typer.Option(metavar="EVENT", help="What to tell of; several are fine.", autocompletion=EVENTS)
    ],
    name: Annotated[str, typer.Option(help="For people.  [default: the URL]")] = "",
    include_result: Annotated[bool, typer.Option("--include-result", help="Send answers with events of jobs.")] = False,
    coalesce: Annotated[
        float | None, typer.Option(help="Seconds that an event waits for others, to go in one request.")
    ] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an endpoint, and print its signing secret, once."""
    with service(url, api_key) as client:
        made = client.webhook_endpoints.create(to, event, name=name, include_result=include_result, coalesce=coalesce)
    _show_secret(made, as_json=as_json)


@app.command(epilog=examples(_FOUND, "stoker webhooks delete $id"))
def delete(endpoint_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None) -> None:
    """Delete an endpoint; nothing more is sent to it."""
    with service(url, api_key) as client:
        client.webhook_endpoints.delete(endpoint_id)


@app.command(epilog=examples(_FOUND, "stoker webhooks enable $id"))
def enable(
    endpoint_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Let an endpoint that was disabled try again."""
    with service(url, api_key) as client:
        found = client.webhook_endpoints.update(endpoint_id, enabled=True)
    if as_json:
        print_json(found)
    else:
        say(f"{found.id}  {_health(found)}")


@app.command(epilog=examples(_FOUND, "stoker webhooks rotate $id --keep-old"))
def rotate(
    endpoint_id: IdArgument,
    *,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="Sign with both for a day.")] = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the signing secret, and print the new one, once."""
    with service(url, api_key) as client:
        made = client.webhook_endpoints.rotate(endpoint_id, keep_old=keep_old)
    _show_secret(made, as_json=as_json)


@app.command(name="test", epilog=examples(_FOUND, "stoker webhooks test $id"))
def sample(
    endpoint_id: IdArgument,
    *,
    event: Annotated[
        str | None,
        typer.Option(
            metavar="EVENT", help="What to send.  [default: the first that it is told of]", autocompletion=EVENTS
        ),
    ] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a sample event, and print what the receiver answers.

    The status is 1 unless that is 2xx.
    """
    from stoker.progress import working

    with service(url, api_key) as client:
        chosen = event or client.webhook_endpoints.get(endpoint_id).event_types[0]
        with working("waiting for the receiver"):
            status = client.webhook_endpoints.test(endpoint_id, chosen)
    if as_json:
        print_json({"event_type": chosen, "status_code": status})
    else:
        say(f"{chosen}: the receiver answered {status}")
    if not 200 <= status < 300:  # noqa: PLR2004  # what HTTP calls success
        raise typer.Exit(1)


@app.command(
    epilog=examples("stoker webhooks deliveries --state failed", "stoker webhooks deliveries --event job.failed")
)
def deliveries(  # noqa: PLR0913  # options of a command
    delivery_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One of them, with its tries.")] = None,
    *,
    state: Annotated[DeliveryState | None, typer.Option(help="Only those in this state.")] = None,
    event: EventOption = None,
    endpoint: EndpointOption = None,
    job: Annotated[str | None, typer.Option(metavar="ID", help="Only those that tell of this job or bulk.")] = None,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List deliveries, newest first, or show one."""
    filters = {"state": state, "event": event, "endpoint_id": endpoint, "job_id": job}
    with service(url, api_key) as client:
        if delivery_id is not None:
            _show(client.deliveries.get(delivery_id), as_json=as_json)
            return
        found = client.deliveries.list(limit=limit, after=after, **filters)
    if as_json:
        print_json(list(found))
    else:
        print_table(
            [(one.id, one.state, one.event, one.job_id, _outcome(one)) for one in found],
            empty="there are no such deliveries",
        )


@app.command(epilog=examples("stoker webhooks redeliver --event job.failed --since 2026-11-27T08:00:00"))
def redeliver(  # noqa: PLR0913  # options of a command
    delivery_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One delivery.")] = None,
    *,
    endpoint: EndpointOption = None,
    event: EventOption = None,
    state: Annotated[Redelivered, typer.Option(help="Those in this state.")] = "failed",
    since: Annotated[datetime | None, typer.Option(help="Only those of this moment or later.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only those before this moment.")] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a delivery once more, or all that failed of some kind.

    Which kind: of an endpoint, of an event, of a time, or of several of these together.
    """
    filters = {
        "endpoint_id": endpoint,
        "event": event,
        "state": state,
        "created_after": since and since.timestamp(),
        "created_before": until and until.timestamp(),
    }
    if delivery_id is None and not (endpoint or event or since or until):
        fail("say which: a delivery's ID, --endpoint, --event, --since or --until", 2)
    from stoker.progress import working

    with service(url, api_key) as client:
        if delivery_id is not None:
            _show(client.deliveries.redeliver(delivery_id), as_json=as_json)
            return
        with working("finding what to send once more"):
            many = _redelivered(client, filters)
    if as_json:
        print_json({"redelivered": many})
    else:
        say(f"{many:,} deliveries are sent once more")


def _redelivered(client: Client, filters: Mapping[str, object]) -> int:
    many, after = 0, None
    while True:
        found = client.deliveries.redeliver_many(**filters, after=after)
        many, after = many + found.redelivered, found.next_after
        if after is None:
            return many


def _show_secret(made: WebhookEndpoint, *, as_json: bool) -> None:
    if as_json:
        print_json(made)
        return
    say(made.id)
    say(f"signing secret, shown this once: {made.signing_secret}")


def _show(delivery: Delivery, *, as_json: bool) -> None:
    if as_json:
        print_json(delivery)
        return
    say(f"{delivery.id}  {delivery.state}  {delivery.event} of {delivery.job_id}")
    say(f"  to {delivery.url}")
    for one in delivery.tries:
        took = "" if one["latency_ms"] is None else f", {one['latency_ms']} ms"
        when = "" if one["at"] is None else f" {_ago(one['at'])}"
        say(f"  try {one['attempt']}{when}: {one['error'] or one['status_code']}{took}")
    if delivery.next_attempt_at is not None:
        say(f"  next try in {duration(max(0.0, delivery.next_attempt_at - time.time()))}")


def _health(endpoint: WebhookEndpoint) -> str:
    return "enabled" if endpoint.enabled else f"disabled ({endpoint.disabled_reason})"


def _outcome(delivery: Delivery) -> str:
    return delivery.error or (str(delivery.status_code) if delivery.status_code else "")


def _ago(at: float) -> str:
    return f"{duration(max(0.0, time.time() - at))} ago"
