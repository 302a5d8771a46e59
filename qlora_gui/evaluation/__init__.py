"""Is it better than the base: measured on held-out rows, with intervals and a verdict."""
