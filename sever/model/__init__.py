"""Models, losses, metrics, optimizers and schedules."""
