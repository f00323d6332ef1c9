"""The wire between a hosted world and those who step it; empty so far."""
