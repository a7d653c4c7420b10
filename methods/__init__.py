"""One file for each method; they are imported as `harness.methods.*`."""
