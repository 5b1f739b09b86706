"""Pictures: of images and their anomaly maps, of a training, of a study."""
