"""The games that come with worldsim: a folder each, found by `worldsim.registry`."""
