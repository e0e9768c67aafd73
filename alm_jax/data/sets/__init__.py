"""Published data sets: their files as they are published, prepared as shards, and read back."""
