"""How good and how fast a world is."""
