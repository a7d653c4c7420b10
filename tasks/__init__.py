"""One file for each task; they are imported as `harness.tasks.*`."""
