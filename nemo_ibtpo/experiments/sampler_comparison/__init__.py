"""``nemo-ibtpo sample``: what samplers make of the same prompts, the paper's Table 3.

``choices`` reads the command line, ``sampling_runs`` samples and keeps each prompt's result as soon as it is known,
``equal_tokens`` turns them into figures, ``comparison_report`` shows them.
"""
