"""The parts of the training loop: where batches come from, how a step is replayed, how a model is validated."""
