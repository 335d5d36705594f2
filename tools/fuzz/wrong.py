"""What an episode raises where a promise was broken."""


class Wrong(Exception):
    """Say which promise was broken."""
