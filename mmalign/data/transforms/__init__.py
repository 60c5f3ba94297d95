"""Records made of other records: conditioned on their scores, chosen by them, mixed, or ranked beside a teacher's answer."""
