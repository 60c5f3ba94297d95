"""Records made of other records: conditioned on their scores, chosen by them, mixed, or labelled as they will be."""
