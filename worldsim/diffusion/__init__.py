"""Noise paths, objectives and samplers, as functions over tensors."""
