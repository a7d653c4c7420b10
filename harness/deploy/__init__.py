"""After the benchmark: a fit that names images, and files of it that need nothing of this harness.

In: a fitted model and images. Out: predictions, exported folders. It may use everything but the
command line.
"""
