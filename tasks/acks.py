"""Messages that cannot be acknowledged: forgotten all the same, so that a worker goes on to hear.

kombu forgets a message only once Redis has been told so. When the connection is lost in between, it counts against the
prefetch limit for ever; after as many as that limit the worker asks for no more messages, and since it asks nothing it
never sees that its connection is lost: alive, well, and deaf (kombu 5.7, `transport/redis.py`, `QoS.ack`; chaos seed
31). Messages are doorbells here: what Redis still holds as unacknowledged is harmless when it comes again.
"""

from __future__ import annotations

from kombu.transport import redis, virtual


class QoS(redis.QoS):
    """What a channel has delivered and not heard back of."""

    def ack(self, delivery_tag: str) -> None:
        """Tell Redis, and forget the message whatever it says. Raises what the connection raises."""
        try:
            super().ack(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  # kombu's signature
        """Do the same for a message that is not wanted."""
        try:
            super().reject(delivery_tag, requeue)
        finally:
            virtual.QoS.ack(self, delivery_tag)


def install() -> None:
    """Let every channel to Redis of this process count so."""
    redis.Channel.QoS = QoS
