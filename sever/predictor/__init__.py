"""From images to a submission."""
