"""The verbs of the command line, by subject; `worldsim.cli` lists them."""
