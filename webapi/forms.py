"""Forms with one file: its bytes go on as they come, the fields before and after it are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from webapi.errors import Problem, invalid

FORM = "multipart/form-data"
PART = "file"
MOST_MEMORY = 1_000_000
"""Bytes that are held: the fields together, or what comes between parts. The blocks of a body must be smaller."""
MOST_PARTS = 100
MOST_NAME = 64


@dataclass(slots=True)
class Form:
    """What came besides the file's bytes."""

    filename: str = ""
    content_type: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def read(blocks: Iterable[bytes], boundary: str, take: Callable[[bytes], None]) -> Form:
    """Read a form; the bytes of its part `file` are handed to `take`. Raises Problem."""
    reader = _Reader(take)
    decoder = MultipartDecoder(boundary.encode(), MOST_MEMORY, max_parts=MOST_PARTS)
    try:
        for data in blocks:
            decoder.receive_data(data)
            reader.take_all(decoder)
        decoder.receive_data(None)
        reader.take_all(decoder)
    except RequestEntityTooLarge:
        detail = f"The form has more than {MOST_PARTS} parts, or too many bytes besides the file."
        raise Problem(400, "malformed_body", detail) from None
    except ValueError:
        detail = "The body is not a whole form, as multipart/form-data has it."
        raise Problem(400, "malformed_body", detail) from None
    return reader.result()


class _Reader:
    """Takes the parts of a form as they come."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._form = Form()
        self._found = False
        self._held = 0
        self._name = ""
        self._value: list[bytes] | None = None

    def take_all(self, decoder: MultipartDecoder) -> None:
        """Take what the decoder has."""
        while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
            if isinstance(event, File):
                self._begin_file(event.name, event.filename, event.headers)
            elif isinstance(event, Field):
                self._name = event.name or ""
                self._value = []
            elif isinstance(event, Data) and self._value is None:
                self._take(event.data)
            elif isinstance(event, Data):
                self._append(event.data, last=not event.more_data)

    def _begin_file(self, name: str | None, filename: str, headers: Headers) -> None:
        if self._found or name != PART:
            raise invalid(PART, f"send one part with a filename, and name it {PART}")
        self._found = True
        self._value = None
        self._form.filename = filename
        self._form.content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def _append(self, data: bytes, *, last: bool) -> None:
        assert self._value is not None  # noqa: S101  # a field is being read
        self._value.append(data)
        self._held += len(data)
        if self._held > MOST_MEMORY:
            raise RequestEntityTooLarge
        if last:
            self._keep(self._name[:MOST_NAME], b"".join(self._value))

    def _keep(self, name: str, value: bytes) -> None:
        if name in self._form.fields:
            raise invalid(name, "was sent twice")
        try:
            text = value.decode()
        except UnicodeDecodeError:
            raise invalid(name, "is not UTF-8") from None
        if "\x00" in name + text:
            raise invalid(name.replace("\x00", ""), "must not have a NUL character")
        self._form.fields[name] = text

    def result(self) -> Form:
        """Return what came. Raises Problem when it was no file."""
        if not self._found:
            raise invalid(PART, f"send the file as the part {PART}, with a filename", "missing")
        return self._form
