"""The empirical Fisher against the true one: the experiments of a paper, run again.

Kunstner, Hennig & Balles (2019), Limitations of the Empirical Fisher Approximation for
Natural Gradient Descent, NeurIPS: the vector field of figure 1, the misspecification
ellipses of figure 2, the optimisation with grids and the cosines of figure 3, with the
data, settings and grids that they published, in float64. Beside them: Adam is not the
natural gradient. `python -m benchmarks.kunstner` runs them all.

    problems, data -> optimisation -> tuning
                   -> vector_field, misspecification, adam        figures show them
"""
