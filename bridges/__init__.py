"""The protocol between a host and its clients, both sides of it, conformance checks, and add-ons for game engines."""
