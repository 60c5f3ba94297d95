"""How files, and data sets of the Hugging Face library, become rows, and rows become records."""
