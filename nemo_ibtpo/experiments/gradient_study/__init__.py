"""``nemo-ibtpo study gradient``: how good the gradient is that an arm gets for its tokens, without training.

The model stays as it is. ``gradient_arms`` reads what is compared, ``gradient_runs`` grows trees and keeps their
gradients, which ``tree_gradients`` computes and ``sketch`` makes small, ``gradient_errors`` turns them into errors
with intervals, ``gradient_report`` shows them.
"""
