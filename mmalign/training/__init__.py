"""What training does between a policy and its rewards: updates, references, evaluations, and what a run keeps.

``updates`` come of experiences, whoever made those: ``rollouts``, or ``records``. ``evaluations`` look on. Each room knows those before it.
"""
