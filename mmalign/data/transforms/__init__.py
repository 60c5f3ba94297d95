"""Records made of other records: conditioned on their scores, chosen by them, mixed, shown to be made better, under principles, ranked
beside a teacher's answer, labelled as they will be, without labels, with those of another task, or under two prompts."""
