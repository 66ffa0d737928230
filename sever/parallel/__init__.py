"""Several processes: launch, rendezvous, collectives, batches that they share."""
