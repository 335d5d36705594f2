"""What fewer reads cost in quality: measured on the user's own text, kept, and chosen from."""
