"""The checks of hosts, by subject; `worldsim.bridges.conformance.check_host` runs them."""
