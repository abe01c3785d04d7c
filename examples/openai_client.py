"""The stock openai package: a stream while you wait, and the same question as a response in the background.

python examples/openai_client.py "Why is the sky blue?"
"""

from __future__ import annotations

import os
import sys
import time

from openai import OpenAI

question = sys.argv[1]
client = OpenAI(
    base_url=f"{os.environ.get('STOKER_URL', 'http://127.0.0.1:8000')}/v1",
    api_key=os.environ.get("STOKER_API_KEY", "none"),
)
model = client.models.list().data[0].id

stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": question}], max_tokens=40, stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

# It is safe now: this program, the web server and the engine may die, and the answer comes.
response = client.responses.create(model=model, input=question, max_output_tokens=40, background=True)
while response.status in {"queued", "in_progress"}:
    time.sleep(0.2)
    response = client.responses.retrieve(response.id)
print(response.status, response.output_text)
