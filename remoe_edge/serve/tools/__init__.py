"""How models call tools: one file for each way of writing calls, and which of them a template means."""
