"""The wire format of streams: server-sent events out of bytes that were cut anywhere. Pure."""

from __future__ import annotations

import re

MOST = 8_000_000
"""Bytes of one line, and of one event."""
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class BadStream(ValueError):
    """What came is no stream of events, or one whose lines have no end."""


class Events:
    """Takes bytes as they come and gives out the data of each whole event.

    `event`, `id` and `retry` fields say nothing that the data does not say as well, and are dropped.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._rest = bytearray()
        self._seen = 0
        self._data: list[bytes] = []
        self._size = 0
        self._begun = False

    def feed(self, chunk: bytes) -> list[str]:
        """Return the data of the events that this chunk ended. Raises BadStream."""
        self._rest += chunk
        found: list[str] = []
        for line in self._lines():
            if line:
                self._take(line)
            elif self._data:
                found.append(self._flush())
        if len(self._rest) > self._most:
            raise BadStream("a line of the stream has no end")
        return found

    def end(self) -> list[str]:
        """Return the data of an event that the end of the stream ended: some servers leave out the last blank line."""
        if self._rest:
            self._take(bytes(self._rest).removesuffix(b"\r"))
            self._rest.clear()
        return [self._flush()] if self._data else []

    def _lines(self) -> list[bytes]:
        lines: list[bytes] = []
        start = 0
        at = self._seen
        while match := _LINE_END.search(self._rest, at):
            if match[0] == b"\r" and match.end() == len(self._rest):
                break  # the other half of a CRLF may be in the next chunk
            lines.append(bytes(self._rest[start : match.start()]))
            start = at = match.end()
        del self._rest[:start]
        # What was looked through once is not looked through again, or a long line would cost its square.
        self._seen = max(0, len(self._rest) - 1)
        return lines

    def _take(self, line: bytes) -> None:
        if not self._begun:
            line = line.removeprefix(_BOM)
            self._begun = True
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        self._size += len(value) + 1  # the line break that joins it
        if self._size > self._most:
            raise BadStream("an event of the stream has no end")
        self._data.append(value.removeprefix(b" "))

    def _flush(self) -> str:
        data = b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        try:
            # Whole events only: a character that was cut in two is whole again here.
            return data.decode()
        except UnicodeDecodeError:
            raise BadStream("the stream is not UTF-8") from None
