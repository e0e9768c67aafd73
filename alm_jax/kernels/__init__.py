"""Hot operations: one folder each, `api.py` picks the implementation, `reference.py` defines the result."""
