"""A checkpoint to a model that runs, and an image to what it takes."""
