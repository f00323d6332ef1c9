"""The parts of a world: autoencoder, dynamics, text, actions, heads."""
