"""What happens to a trained model: its folder, its card, its place in MLflow, its export, its predictions."""
