"""The small mixture-of-experts model: its shape, its layers, how it trains and is exported."""
