"""Records on disk, and what was predicted beside them.

In: a results folder. Out: validated records, the rows that belong together with raw accuracies, the
predictions of each image. Uses the floors below alone; never imports torch.
"""
