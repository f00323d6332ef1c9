"""Measure the quality and the speed of a world."""
