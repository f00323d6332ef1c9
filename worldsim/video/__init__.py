"""Offline video from the weights of a world: tasks are patterns of given frames."""
