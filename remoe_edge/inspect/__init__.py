"""What a model file is, and what this machine can do for it."""
