"""What a run needs beside its loop: checkpoints, signals, resume, samplers."""
