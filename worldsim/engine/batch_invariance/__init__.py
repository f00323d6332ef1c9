"""Batch invariance: a session's bits do not depend on what else is in its batch.

`modules` swaps the products that would on a copy of the model; `sizes` finds, by trying, the batch sizes at which no
row differs from what it is alone.
"""
