"""Records on disk, and tables made of them. Nothing here imports torch.

In: a results folder. Out: accuracies averaged from raw values, costs, tables as text. Uses `errors`
alone.
"""
