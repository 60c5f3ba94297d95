"""Records made of other records: conditioned on their scores, chosen by them, mixed, shown to be made better, under principles, or ranked
beside a teacher's answer."""
