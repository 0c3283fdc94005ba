"""Special functions and remainders that families are computed with."""
