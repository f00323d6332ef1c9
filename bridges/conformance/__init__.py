"""Checks for authors of clients and hosts: `check_client` and `check_host` say whether one follows the protocol."""
