"""LangChain, unchanged: a chain whose model is behind the queue. Needs `pip install langchain-openai`.

python examples/langchain_chat.py
"""

from __future__ import annotations

import os

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import OpenAI

URL = f"{os.environ.get('STOKER_URL', 'http://127.0.0.1:8000')}/v1"
KEY = os.environ.get("STOKER_API_KEY", "none")

model = ChatOpenAI(
    model=OpenAI(base_url=URL, api_key=KEY).models.list().data[0].id,
    base_url=URL,
    api_key=KEY,
    max_tokens=30,
    timeout=120,
)
prompt = ChatPromptTemplate.from_messages([("system", "Answer in one sentence."), ("human", "Why is {thing} {how}?")])
chain = prompt | model | StrOutputParser()

print(chain.invoke({"thing": "the sky", "how": "blue"}))

for answer in chain.batch([{"thing": "snow", "how": "white"}, {"thing": "grass", "how": "green"}]):  # at once
    print(answer)

for piece in chain.stream({"thing": "the sea", "how": "salty"}):
    print(piece, end="", flush=True)
print()
