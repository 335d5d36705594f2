"""Readers that turn packages into documents, one module per domain."""
