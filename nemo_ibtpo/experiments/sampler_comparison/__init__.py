"""``nemo-ibtpo sample``: what samplers make of the same prompts, the paper's Table 3.

``settings`` reads the command line, ``run`` samples, ``records`` keeps each prompt's result as soon as it is known,
``estimates`` turns them into figures, ``report`` shows them.
"""
