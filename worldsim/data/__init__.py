"""Recorded gameplay: record it, read it, and turn it into latents."""
