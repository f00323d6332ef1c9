"""Agents that learn inside a world, or in its game, and planners that look ahead in one."""
