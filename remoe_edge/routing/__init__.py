"""Which experts each token was routed to: recorded, read, replayed through the cache."""
