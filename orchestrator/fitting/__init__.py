"""The parts of the training loop: where batches come from, how a model is validated."""
