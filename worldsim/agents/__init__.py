"""Agents that learn inside a world, or in its game, and planners that search ahead in a world."""
