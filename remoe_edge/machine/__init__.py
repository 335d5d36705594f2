"""What this machine is and has: memory, processors, storage. Knows nothing of models."""
