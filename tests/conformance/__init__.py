"""A conformance suite for OpenAI's Files and Batches: it asks any server, by HTTP alone. README.md says how."""
