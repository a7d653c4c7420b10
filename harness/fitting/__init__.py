"""A method grafted on a backbone, fitted and evaluated.

In: a `Method`, a `Clip`, a `Split`. Out: trained modules, predictions, and what the fit says of
itself. Uses `towers`, `images`, and the contract `method`.
"""
