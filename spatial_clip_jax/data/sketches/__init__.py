"""A second world, to test on: hand-drawn sketches of the same things, larger pictures, smaller objects."""
