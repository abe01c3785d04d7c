"""Pages of a list: newest first, from behind the last id of the page before."""

from __future__ import annotations

from models.db import is_id
from models.views import Filters
from webapi.errors import FieldError, Problem, invalid
from webapi.schemas import ListQuery, Parameters

PREFIX = "metadata."
MOST_TAGS = 16
"""Each is one more condition of the database's query."""


def filters_of(query: ListQuery) -> Filters:
    """Return the filters that a query asks for. Raises Problem 422 for parameters that a list does not have."""
    tags = tags_of(query)
    for name in ("model", "bulk_id"):
        if "\x00" in (getattr(query, name) or ""):
            raise invalid(name, "must not have a NUL character")
    return Filters(query.state, query.lane, query.model, query.bulk_id, tags)


def tags_of(query: Parameters) -> dict[str, str]:
    """Return the tags that a query names by `metadata.<key>`. Raises Problem 422 for any other unknown parameter."""
    extra = query.model_extra or {}
    unknown = [name for name in extra if not name.startswith(PREFIX) or name == PREFIX]
    if unknown:
        errors = [FieldError(name[:100], "there is no such parameter", "extra_forbidden") for name in unknown[:5]]
        allowed = ", ".join([*type(query).model_fields, f"{PREFIX}<key>"])
        raise Problem(422, "invalid_request", f"Unknown parameter; allowed: {allowed}.", errors=errors)
    if len(extra) > MOST_TAGS:
        raise invalid(f"{PREFIX}<key>", f"at most {MOST_TAGS}, as many as a job can have", "too_long")
    tags = {name.removeprefix(PREFIX): str(value) for name, value in extra.items()}
    for key, value in tags.items():
        # Both end up inside a JSON path or a text of the database.
        if any(sign in key for sign in '"\\') or "\x00" in key + value:
            raise invalid(f"{PREFIX}{key}", "quotes, backslashes and NUL cannot be searched for")
    return tags


def after_of(query: ListQuery) -> str | None:
    """Return the id to start behind. Raises Problem 422 when it is no job's id."""
    if query.after is not None and not is_id("job", query.after):
        raise invalid("after", "must be the id of a job (the last one of the page before)")
    return query.after
