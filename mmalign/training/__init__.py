"""What training does between a policy and its rewards: updates, references, evaluations, and what a run keeps."""
