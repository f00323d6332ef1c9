"""What a host is checked for, by what it is about; `worldsim.bridges.check_host` runs it all."""
