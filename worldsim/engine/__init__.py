"""Sessions of a world, stepped in batches."""
