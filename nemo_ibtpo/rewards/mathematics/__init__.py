"""Mathematical answers: what a text says (``reading``), and whether two texts say the same (``equality``).

Only the LaTeX grammar of math-verify's library (latex2sympy2-extended) is used. math-verify's comparison is not: its
release 0.9.0 rounds to six decimals (10^{-20} equals 10^{-21}), multiplies the letters of words (ABC equals BCA),
forgets the order of tuples, takes the right side of any equation (1 = 7 for 7) and drops units, bases and factors.

Accepting a wrong answer teaches to cheat, refusing a right one only costs a reward: what cannot be read for sure is
compared as text.
"""
