"""Several processes as one run: who computes which rows, what they tell each other, and how they are started."""
