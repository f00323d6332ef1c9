"""A host: serves the sessions of engines to clients elsewhere."""
