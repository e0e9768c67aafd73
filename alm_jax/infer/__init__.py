"""Generation with a KV cache, and the Python API over a loaded model."""
