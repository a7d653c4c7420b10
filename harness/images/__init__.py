"""From files to pixels: decoding, transforms, the disk cache, and what is known of data on disk.

In: the lists of a `Dataset`. Out: batches of pixels in a fixed order. Uses `dataset`, `registry`
and `records` (to write files whole).
"""
