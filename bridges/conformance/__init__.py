"""Checks for authors of clients and hosts: whether one follows the protocol."""
