"""Look at shards before a run: samples as the model sees them, and numbers about all of it."""
