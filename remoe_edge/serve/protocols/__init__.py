"""The protocols that clients speak: each reads a request, and writes events as its clients know them."""
