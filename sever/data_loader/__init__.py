"""Images and annotations on their way to the model."""
