"""A U-Net that stacks frames: the model, its diffusion, its training, and its comparison with a world."""
