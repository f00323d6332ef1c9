"""Programs to play with and to copy from: a pygame window on a world or any game, and clips without a screen.

from worldsim.demos.player import PlayConfig, play

play(PlayConfig(world="car-racing", beside="real-car-racing"))
"""
