"""Models behind one protocol: weights, KV caches, canonical shapes and devices live here."""
