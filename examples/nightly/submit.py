"""Submit tonight's prompts as one bulk.

For cron:

    0 1 * * *  python /srv/nightly/submit.py /srv/nightly/prompts.jsonl

Run twice in a night, by a second cron or after a crash, it makes one bulk: the key says which night it is.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime

from stoker import Client

with Client(os.environ.get("STOKER_URL", "http://127.0.0.1:8000"), os.environ.get("STOKER_API_KEY")) as client:
    night = datetime.now(UTC).strftime("%Y-%m-%d")
    bulk = client.bulk(
        sys.argv[1],
        max_tokens=200,
        metadata={"nightly": night},
        expires_in=12 * 3600,  # what is not done by noon is not wanted any more
        idempotency_key=f"nightly-{night}",
    )
    print(bulk.id)
