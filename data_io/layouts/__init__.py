"""One file per family of public datasets: which images are for training, which for the test, and where masks lie."""
