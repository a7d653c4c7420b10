"""How sure numbers are: intervals, differences and places, from what was predicted of each image.

In: tables of records, and the predictions beside them. Out: `Certainty` of a table, `compare` of
two rows. May use records; never imports torch.
"""
