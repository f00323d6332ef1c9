"""Models of others to hold the dynamics against; nothing else of worldsim needs them."""
