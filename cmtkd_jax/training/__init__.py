"""Training and evaluation of one run: the loop, the compiled steps, the optimizer, what a run starts from."""
