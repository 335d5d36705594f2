"""Serve a model over HTTP: the protocols that clients speak, a chat page, and who is answered when.

HTTP (app.py, protocols/) asks `Conversations` (conversations.py), behind which one engine in a
thread of its own (engine_thread.py) answers one at a time (one_at_a_time.py) or several
(side_by_side.py). Only this room knows a web framework: the extra `[serve]`.
"""
