"""How the data sets people have say which answer is better: a row -> records."""
