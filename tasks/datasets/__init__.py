"""One file for each dataset, or for each layout; imported as `harness.tasks.datasets.*`."""
