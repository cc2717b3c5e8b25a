"""Methods whose scores are learned by gradient descent."""
