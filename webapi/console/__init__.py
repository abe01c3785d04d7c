"""The console: pages at `/dashboard` that show what the service does, and let it be steered.

Each module is one page. Pages are written by the server, with the same functions that answer `/v1`; scripts add what
has to move: charts, streams, uploads. `door.py` is what all have in common.
"""
