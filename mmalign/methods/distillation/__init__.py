"""Few-step students that learn the distribution of a teacher, with rewards beside it or without."""
