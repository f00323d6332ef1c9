"""Recorded gameplay: making it, reading it, and turning it into latents."""
