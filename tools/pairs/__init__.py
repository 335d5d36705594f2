"""Every two of the engine's options together: what they are, and what is tried with them."""
