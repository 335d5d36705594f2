"""Serve a model over HTTP: the protocols that clients speak, a chat page, and who is answered when.

HTTP (app.py, protocols/) asks `Conversations` (conversations.py), behind which today one engine gives
one answer at a time (one_at_a_time.py). Only this room knows a web framework: the extra `[serve]`.
"""
