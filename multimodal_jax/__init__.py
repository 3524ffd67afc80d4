"""What uses all packages together: the page of `multimodal-jax serve`, and the demo of all models."""
