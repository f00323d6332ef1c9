"""Recordings in, worlds out."""
