"""What a host is checked for, by what it is about; `worldsim.bridges.conformance.check_host` runs it all."""
