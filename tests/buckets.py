"""A bucket of S3 on loopback: moto's server, in a process of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx

from tests import servers

BUCKET = "stoker-test"


class Bucket(servers.Server):
    """A server with one bucket, empty at first."""

    @property
    def endpoint(self) -> str:
        """Return the URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """Return the variables by which it is found."""
        return {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def answers(self) -> bool:
        """Make the bucket, and tell whether that worked."""
        with suppress(httpx.TransportError):
            return httpx.put(f"{self.endpoint}/{BUCKET}", timeout=5).is_success
        return False

    def stored(self) -> list[str]:
        """Return the keys of all objects."""
        return re.findall("<Key>(.*?)</Key>", httpx.get(f"{self.endpoint}/{BUCKET}").text)

    def unfinished(self) -> int:
        """Return the number of uploads that are under way, or were left."""
        return httpx.get(f"{self.endpoint}/{BUCKET}?uploads").text.count("<UploadId>")


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Run a server with a bucket."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p"]
    with (
        servers.own_folder("bucket") as folder,
        servers.running(Bucket(lambda port: [*command, str(port)], folder)) as made,
    ):
        yield made
